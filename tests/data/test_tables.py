"""Whatever conversations come in: the same rows of every kind of file, or a line that names it."""

import csv
import gzip
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simple_llama.data.preparation import prepare
from simple_llama.data.rows import RowError, read_rows
from simple_llama.data.sources import unread_files
from simple_llama.errors import InputError
from tests.support.conversations import params

ROWS: list[dict[str, Any]] = [
    {"instruction": f'Say "{index}",\nplease: é', "output": f"{index}"} for index in range(2500)
]
LINES = "".join(f"{json.dumps(row)}\n" for row in ROWS).encode()


def write_csv(path: Path, delimiter: str) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["instruction", "output"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write_stream(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def write_file(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=700)


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


KINDS: dict[str, Callable[[Path], object]] = {
    "a.JSONL": lambda path: path.write_bytes(LINES),
    "a.ndjson": lambda path: path.write_bytes(LINES),
    "a.jsonlines.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "a.jsonl.xz": lambda path: path.write_bytes(lzma.compress(LINES)),
    "a.json.zst": lambda path: path.write_bytes(zstd(json.dumps(ROWS).encode())),
    "a.csv": lambda path: write_csv(path, ","),
    "a.TSV": lambda path: write_csv(path, "\t"),
    "a.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "data-00000-of-00001.arrow": write_stream,
    "a.arrow": write_file,
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    KINDS[name](tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        found = list(read_rows(path))
        assert [row.value for row in found] == ROWS
        assert [row.id for row in found[:2]] == [f"{name}[0]", f"{name}[1]"]
        assert json.loads(found[7].text) == ROWS[7]


def test_a_packed_csv_is_read_too(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ",")
    packed = tmp_path / "b.csv.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    assert [row.value for row in read_rows(packed)] == ROWS


def test_conversations_in_a_table_are_read_as_in_json(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [{"messages": messages, "instruction": None, "at": None}, {"instruction": "i"}]
    pq.write_table(
        pa.Table.from_pylist([*rows, {"instruction": "x", "output": "y"}]), tmp_path / "a.parquet"
    )
    # a table has the keys of all rows in each
    assert [row.value["messages"] for row in read_rows(tmp_path)] == [messages, None, None]


def test_a_saved_data_set_is_read_and_other_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    write_stream(tmp_path / "train/data-00000-of-00001.arrow")
    for name in ("dataset_dict.json", "train/state.json", "train/dataset_info.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "more.zip").write_bytes(b"PK\3\4")
    (tmp_path / "README.md").write_text("# what")
    assert len(list(read_rows(tmp_path))) == len(ROWS)
    assert unread_files(tmp_path) == ["README.md", "more.zip"]
    report = prepare(params(tmp_path), tmp_path / "out")
    assert report["kept"] == len(ROWS) and report["files_by_format"] == {"alpaca": 1}


def test_a_row_of_a_table_that_has_other_fields_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("instruction,output\nq,a\nq\n\nq,a,b\n", encoding="utf-8-sig")
    found = [row.value for row in read_rows(path)]
    assert found[0] == {"instruction": "q", "output": "a"}
    assert [str(value) for value in found[1:]] == [
        "1 fields, the header names 2",
        "3 fields, the header names 2",
    ]
    assert all(isinstance(value, RowError) for value in found[1:])


PARQUET = pa.BufferOutputStream()
pq.write_table(pa.Table.from_pylist(ROWS[:50]), PARQUET)
WHOLE = bytes(PARQUET.getvalue())


def wild_offsets() -> bytes:
    """An Arrow stream whose texts lie far outside of it."""
    sink = pa.BufferOutputStream()
    table = pa.table({"instruction": ["q" * 64, "r"], "output": ["a", "b"]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    offsets = b"".join(place.to_bytes(4, "little") for place in (0, 64, 65))
    data = bytes(sink.getvalue())
    assert data.count(offsets) == 1
    return data.replace(offsets, b"".join(n.to_bytes(4, "little") for n in (0, 2**30, 2**30 + 1)))


WILD = wild_offsets()


def bomb(value: str, rows: int, compression: str) -> bytes:
    """A Parquet file that holds one text once, for all its rows."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"instruction": [value] * rows}), sink, compression=compression)
    return bytes(sink.getvalue())


REPEATED = bomb(random.Random(0).randbytes(10**4).hex(), 1000, "none")
EMPTY = bomb(" " * 3 * 10**6, 1, "zstd")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.parquet", WHOLE[:-20], "damaged Parquet or Arrow data"),
        ("a.parquet", WHOLE[:4] + b"\xff" * 200 + WHOLE[204:], "damaged Parquet or Arrow data"),
        ("a.arrow", b"ARROW1\0\0garbage", "damaged Parquet or Arrow data"),
        ("a.arrow", WILD, "damaged Parquet or Arrow data"),
        ("a.arrow", b"\xff\xff\xff\xff\xff\xff\xff\x7f", "damaged Parquet or Arrow data"),
        ("a.csv", b"a,a\n1,2\n", "names no columns, or one of them twice"),
        ("a.csv", b'a,b\n"1,2\n', "not CSV"),
        ("a.csv", b"a,b\n\xff,2\n", "not UTF-8 text"),
        ("a.jsonl", b"PK\3\4whatever", "a zip archive, which is not read: unpack it"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        ("a.jsonl", b"<!DOCTYPE html><html>", "an HTML page"),
        ("a.jsonl.xz", lzma.compress(LINES)[:-40], "damaged xz data"),
        ("a.jsonl.xz", lzma.compress(b" " * 3 * 10**6), "unpacks to over 200 times its size"),
        ("a.jsonl.zst", zstd(b" " * 3 * 10**6), "unpacks to over 200 times its size"),
        ("a.parquet", EMPTY, "unpacks to over 200 times its size"),
        ("a.parquet", REPEATED, "unpacks to over 200 times its size"),
    ],
)
def test_damaged_and_foreign_files_are_named(
    name: str, content: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        list(read_rows(tmp_path / name))
    assert name in str(error.value) and "\n" not in str(error.value)
