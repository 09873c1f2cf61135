"""Reads rows from Parquet, Arrow files as `datasets` saves them, CSV and TSV, in constant memory.

Parquet and Arrow files are recognised by their first bytes and read by pyarrow; CSV and TSV files
are recognised by their names.
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
PARQUET_MAGIC, ARROW_MAGIC, ARROW_STREAM_MAGIC = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
"""First bytes of a file: https://parquet.apache.org/docs/file-format and
https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format"""
ROWS_AT_ONCE = 64
"""Rows converted to Python objects at once. Dictionary encoding lets a small file repeat a large
value in every row, so this bounds memory."""
MAX_FIELD_CHARACTERS = 25 * 2**20
"""Longest field of a CSV file."""


def is_columnar(head: bytes) -> bool:
    """Whether a file with these first bytes is Parquet or Arrow."""
    return head.startswith((PARQUET_MAGIC, ARROW_MAGIC, ARROW_STREAM_MAGIC))


def find_delimiter(path: Path) -> str | None:
    """The delimiter of a CSV or TSV file, by its name; None if the name is of another kind."""
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
            for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                yield from batch.slice(start, ROWS_AT_ONCE).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"{path}: damaged Parquet or Arrow data: {said}") from None


def _batches(path: Path, head: bytes) -> Iterator[Any]:
    """The record batches of a Parquet or Arrow file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if head.startswith(PARQUET_MAGIC):
        with pq.ParquetFile(path) as table:
            groups = [table.metadata.row_group(at) for at in range(table.num_row_groups)]
            check_ratio(path, sum(one.total_byte_size for one in groups), path.stat().st_size)
            yield from table.iter_batches(batch_size=ROWS_AT_ONCE)
        return
    with pa.memory_map(str(path)) as source:
        if head.startswith(ARROW_MAGIC):
            file = pa.ipc.open_file(source)
            batches = (file.get_batch(index) for index in range(file.num_record_batches))
        else:
            batches = iter(pa.ipc.open_stream(source))
        for batch in batches:
            batch.validate(full=True)  # pyarrow itself does not check that offsets are in bounds
            yield batch


def csv_rows(path: Path, data: BinaryIO, between: str) -> Iterator[dict[str, Any] | str]:
    """The rows of a CSV file with a header; a string with the fault in place of a faulty row.

    Raises InputError where the file is not UTF-8 text or not CSV.
    """
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
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
    """A row as JSON text; values that JSON does not have, such as bytes or dates, as strings."""
    return json.dumps(value, ensure_ascii=False, default=str)
