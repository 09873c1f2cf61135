"""Tables → rows, in flat memory: Parquet, Arrow files as `datasets` saves them, CSV and TSV.

Parquet and Arrow are told by their first bytes and read by pyarrow, CSV and TSV by their names.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from simple_llama.data.sources import check_ratio
from simple_llama.errors import InputError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
PARQUET, ARROW, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
"""First bytes: https://parquet.apache.org/docs/file-format and
https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format"""
BATCH = 64
"""Rows that are in memory at once: a dictionary lets a small file repeat a large value in each."""
MAX_FIELD = 25 * 2**20
"""Characters of a CSV field."""


def is_columnar(head: bytes) -> bool:
    """Whether a file that begins so is Parquet or Arrow."""
    return head.startswith((PARQUET, ARROW, ARROW_STREAM))


def delimiter(path: Path) -> str | None:
    """What stands between the fields of a file, to judge by its name; None: it is no CSV."""
    found = re.search(r"(\.[ct]sv)(\.(gz|xz|zst))?$", path.name.lower())
    return DELIMITERS[found[1]] if found else None


def columnar_rows(path: Path, head: bytes) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet or Arrow file. Raises InputError where it is damaged."""
    import pyarrow as pa

    size, count = path.stat().st_size, 0
    try:
        for batch in _batches(path, head):
            count += batch.nbytes
            check_ratio(path, count, size)
            for start in range(0, batch.num_rows, BATCH):
                yield from batch.slice(start, BATCH).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"{path}: damaged Parquet or Arrow data: {said}") from None


def _batches(path: Path, head: bytes) -> Iterator[Any]:
    """The record batches of a Parquet or Arrow file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if head.startswith(PARQUET):
        with pq.ParquetFile(path) as table:
            groups = [table.metadata.row_group(at) for at in range(table.num_row_groups)]
            check_ratio(path, sum(one.total_byte_size for one in groups), path.stat().st_size)
            yield from table.iter_batches(batch_size=BATCH)
        return
    with pa.memory_map(str(path)) as source:
        if head.startswith(ARROW):
            file = pa.ipc.open_file(source)
            batches = (file.get_batch(index) for index in range(file.num_record_batches))
        else:
            batches = iter(pa.ipc.open_stream(source))
        for batch in batches:
            batch.validate(full=True)  # pyarrow trusts offsets, and reads wherever they lead
            yield batch


def csv_rows(path: Path, data: BinaryIO, between: str) -> Iterator[dict[str, Any] | str]:
    """The rows of a file with a header; what is wrong with a row in its place.

    Raises InputError where it is not UTF-8 text or no such table.
    """
    csv.field_size_limit(MAX_FIELD)
    text = io.TextIOWrapper(data, encoding="utf-8-sig", newline="")
    try:
        reader = csv.reader(text, delimiter=between, strict=True)
        names = next(reader, [])
        if len(set(names)) < len(names) or not all(name.strip() for name in names):
            raise InputError(f"{path}: its first line names no columns, or one of them twice")
        for fields in reader:
            if len(fields) == len(names):
                yield dict(zip(names, fields))
            elif fields:
                yield f"{len(fields)} fields, the header names {len(names)}"
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error.reason}") from None
    except csv.Error as error:
        raise InputError(f"{path}: not CSV: {error}") from None
    finally:
        text.detach()


def as_json(value: Any) -> str:
    """A row as it is recorded; what JSON has no word for, such as bytes or a date, as text."""
    return json.dumps(value, ensure_ascii=False, default=str)
