"""Files of any bytes → rows: what is read, what is refused in one line."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simple_llama.data import rows
from simple_llama.data.rows import RepeatedKey, RowError, block_rows, read_blocks, read_rows
from simple_llama.errors import InputError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


def write(folder: Path, data: bytes | str, name: str = "file.json") -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def values(path: Path) -> list[Any]:
    return [row.value for row in read_rows(path)]


@settings(max_examples=60, deadline=None)
@given(st.lists(JSON, min_size=1), st.sampled_from([None, 1]), st.booleans(), st.integers(1, 40))
def test_an_array_read_in_chunks_of_any_size_gives_what_json_gives(
    tmp_path_factory: pytest.TempPathFactory,
    elements: list[Any],
    indent: int | None,
    ascii_only: bool,
    chunk: int,
) -> None:
    text = json.dumps(elements, indent=indent, ensure_ascii=ascii_only)
    path = write(tmp_path_factory.getbasetemp(), text, "chunks.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "CHUNK_BYTES", chunk)
        read = list(read_rows(path))
    assert [row.value for row in read] == elements
    assert [row.id for row in read] == [f"chunks.json[{i}]" for i in range(len(elements))]
    assert [json.loads(row.text) for row in read] == elements


@settings(max_examples=60, deadline=None)
@given(st.lists(JSON, min_size=1), st.data())
def test_an_array_cut_off_anywhere_is_refused(
    tmp_path_factory: pytest.TempPathFactory, elements: list[Any], data: st.DataObject
) -> None:
    text = json.dumps(elements)
    cut = data.draw(st.integers(1, len(text) - 1))
    path = write(tmp_path_factory.getbasetemp(), text[:cut], "cut.json")
    with pytest.raises(InputError, match=r"^[^\n]*$"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file"),
        (b" \n\t\r\n", "an empty file"),
        (b"[]", "an empty array"),
        (b"\xef\xbb\xbf[{}]", "byte order mark; sed"),
        ("[{}]".encode("utf-16"), "UTF-16"),
        ("[{}]".encode("utf-16-le"), "UTF-16"),
        (b"PK\x03\x04\x00\x00", "a zip archive, which is not read"),
        (b'[{"a": "caf\xe9"}]', r"not UTF-8 text \(byte 11\)"),
        (b'{"a": 1}\n{"a": "caf\xe9"}\n', r"not UTF-8 text \(byte 19\)"),
        (b"id,question\n1,what?\n", r"neither a JSON array nor JSONL.*file.json\[0\]: not JSON"),
        (b'{\n  "data": [\n    1\n  ]\n}\n', "neither a JSON array nor JSONL"),
        (b"17", "neither a JSON array nor JSONL"),
        (b'[{"a": 1}', "ends within the array, after file.json\\[0\\]: a truncated file?"),
        (b'[{"a": 1}, {"a"', r"line 1: file.json\[1\]: .*a truncated file\?"),
        (b'[{"a": 1}, {"a": "b', r"Unterminated string.*a truncated file\?"),
        (b'[{"a": 1},\n {"a": oops}, 3]' + b" " * 50, r"line 2: file.json\[1\]: Expecting value$"),
        (b'[{"a": 1},\n]', r"line 2: file.json\[1\]: Expecting value$"),
        (b'[{"a": 1} {"a": 2}]', "wanted ',' or ']'"),
        (b'[{"a": 1}]\n[{"a": 2}]', "line 2: text after the array's closing"),
        (b"[" * 100_000, "nested too deeply"),
        (b'[{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_conversations_is_refused_in_one_line(
    tmp_path: Path, data: bytes, message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        list(read_rows(write(tmp_path, data)))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_an_invalid_element_is_reported_before_the_rest_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, b"[{} {}," + b"{}," * 10**6 + b"{}]")
    with open(path, "rb") as file:
        with pytest.raises(InputError, match="wanted"):
            list(rows._array_rows(path, "x", file))
        assert file.tell() <= rows.CHUNK_BYTES


def test_an_element_without_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_ROW_LENGTH", 10_000)
    monkeypatch.setattr(rows, "CHUNK_BYTES", 100)
    path = write(tmp_path, b'["' + b"x" * 10**6)
    with open(path, "rb") as file:
        with pytest.raises(InputError, match="no end within 10000 characters"):
            list(rows._array_rows(path, "x", file))
        assert file.tell() < 50_000


def test_a_line_without_end_is_rejected_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_ROW_LENGTH", 2000)
    path = write(tmp_path, json.dumps({"User": "x" * 5000}) + "\n{}\n")
    first, second = read_rows(path)
    assert isinstance(first.value, RowError) and first.value.reason == "too long"
    assert len(first.text) == rows.SHOWN_OF_LONG_ROW and second.value == {}


def test_jsonl_keeps_line_numbers_and_rejects_single_lines(tmp_path: Path) -> None:
    # U+2028 and a lone \r end no line
    data = '{"a": 1}\r\n\nnot json\n{"a": "\u2028\\r"}\n' + "[" * 100_000 + "\n{}"
    read = list(read_rows(write(tmp_path, data, "x.jsonl")))
    assert [row.id for row in read] == [f"x.jsonl[{i}]" for i in (0, 2, 3, 4, 5)]
    assert read[0].value == {"a": 1} and read[2].value == {"a": "\u2028\r"}
    assert [str(read[i].value) for i in (1, 3)] == [
        "not JSON: Expecting value (character 0)",
        "nested too deeply",
    ]


def test_a_folder_is_read_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    names = ["a.jsonl", "b.json", "sub/c.json", "z.json.gz", "z.jsonl.gz"]
    for name in (*names, "notes.txt", ".hidden.json", "data.gz"):
        write(tmp_path, json.dumps({"from": name}), name)
    read = list(read_rows(tmp_path))
    assert [row.id for row in read] == [f"{name}[0]" for name in names]
    assert [row.file for row in read] == names


def test_paths_that_are_no_conversations(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        list(read_rows(tmp_path / "missing.json"))
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(InputError, match="no file of conversations"):
        list(read_rows(folder))
    os.mkfifo(folder / "pipe.json")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        list(read_rows(folder / "pipe.json"))
    with pytest.raises(InputError, match="not a file"):
        list(read_rows(folder))
    (folder / "pipe.json").unlink()
    (folder / "link.json").symlink_to(write(tmp_path, "[{}]"))
    with pytest.raises(InputError, match="leads out of"):
        list(read_rows(folder))


def test_links_into_a_cache_of_dvc_are_followed(tmp_path: Path) -> None:
    """As `cache.type symlink` makes them; a cache may be anywhere."""
    cached = tmp_path / "cache" / "files" / "md5" / "0a" / ("1b" * 15)
    cached.parent.mkdir(parents=True)
    cached.write_text('{"a": 1}\n')
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").symlink_to(cached)
    assert [row.value for row in read_rows(folder)] == [{"a": 1}]
    for elsewhere in ("0a/" + "1b" * 14, "0a/" + "1z" * 15):
        other = tmp_path / "cache" / "files" / "md5" / elsewhere
        other.write_text('{"a": 1}\n')
        (folder / "a.jsonl").unlink()
        (folder / "a.jsonl").symlink_to(other)
        with pytest.raises(InputError, match="leads out of"):
            list(read_rows(folder))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": NaN, "b": -Infinity, "c": 1e999}', 3),
        ('{"a": ' + "9" * 5000 + "}", 1),
        ('{"a": "\\ud800", "b": "\\u0000"}', 2),
    ],
)
def test_odd_values_are_read_without_an_error(tmp_path: Path, text: str, value: int) -> None:
    [row] = read_rows(write(tmp_path, f"[{text}]"))
    assert len(row.value) == value and row.text == text


def test_a_repeated_key_stands_for_its_object(tmp_path: Path) -> None:
    assert values(write(tmp_path, '[{"a": 1, "b": 2, "a": 3}]')) == [RepeatedKey("a")]


LINES = b"".join(b'{"a": %d}\n' % index for index in range(1000))
PACKED = gzip.compress(LINES)


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.json.gz", "x.jsonl"])
def test_a_packed_file_gives_the_same_rows_whatever_its_name(tmp_path: Path, name: str) -> None:
    array = b"[" + LINES.strip().replace(b"\n", b",") + b"]"
    wanted = [{"a": index} for index in range(1000)]
    for data in (
        PACKED,
        gzip.compress(array),
        gzip.compress(LINES[:500]) + gzip.compress(LINES[500:]),
    ):
        assert values(write(tmp_path, data, name)) == wanted


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (PACKED[:-20], "damaged gzip data: Compressed file ended"),
        (PACKED[:10], "damaged gzip data"),
        (PACKED[:100] + b"\0" * 50 + PACKED[150:], "damaged gzip data"),
        (PACKED[:-8] + b"\1\2\3\4" + PACKED[-4:], "damaged gzip data: CRC check failed"),
        (PACKED + b"more", "damaged gzip data: Not a gzipped file"),
        (b"\x1f\x8b", "damaged gzip data"),
        (gzip.compress(b""), "an empty file"),
        (gzip.compress(b"\xef\xbb\xbf{}"), "byte order mark"),
        (gzip.compress(PACKED), "UTF-16 or binary"),
        (gzip.compress(json.dumps([{"a": 1}] * 9).encode()[:-3]), "truncated"),
        (gzip.compress(b"\n" * 2**21), "unpacks to over 200 times its size"),
        (gzip.compress(b"[" + b" " * 2**21), "unpacks to over 200 times its size"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_packed_files_are_refused_in_one_line(
    tmp_path: Path, data: bytes, message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        list(read_rows(write(tmp_path, data, "x.json.gz")))
    assert "\n" not in str(error.value) and "x.json.gz" in str(error.value)


def test_a_gzip_bomb_is_given_up_after_a_few_megabytes(tmp_path: Path) -> None:
    bomb = gzip.compress(b"[" + (b'"%s",' % (b"x" * 1000)) * 2**14)
    rows_read = 0
    with pytest.raises(InputError, match="unpacks to over 200 times its size"):
        for _ in read_rows(write(tmp_path, bomb, "bomb.json.gz")):
            rows_read += 1
    assert 500 < rows_read < 5000


@pytest.mark.parametrize("size", [1, 7, 40, 10_000])
def test_a_file_read_in_blocks_has_the_same_rows(tmp_path: Path, size: int) -> None:
    path = tmp_path / "train.jsonl"
    lines = [f'{{"id": {number}, "text": "{"é" * number}"}}\n' for number in range(20)]
    path.write_text("".join(lines[:9]) + "\n \nnot JSON\n" + "".join(lines[9:]).rstrip("\n"))
    blocks = list(read_blocks(path, size))
    assert (len(blocks) > 1) == (size < 10_000)
    assert b"".join(block.lines for block in blocks) == path.read_bytes()
    in_blocks = [row for block in blocks for row in block_rows(block)]
    assert [(row.id, str(row.value), row.text) for row in in_blocks] == [
        (row.id, str(row.value), row.text) for row in read_rows(path)
    ]


def test_a_byte_that_is_no_utf8_is_found_in_its_block(tmp_path: Path) -> None:
    path = write(tmp_path, b'{"a": 1}\n' * 9 + b'{"a": "\xff"}\n', "train.jsonl")
    with pytest.raises(InputError, match=r"train.jsonl: not UTF-8 text \(byte 88\)"):
        list(block_rows(list(read_blocks(path, 20))[-1]))
