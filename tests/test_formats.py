"""Files of any bytes → rows: what is read, what is refused in one line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simple_llama.data import rows
from simple_llama.data.formats import to_conversation
from simple_llama.data.rows import RowError, read_rows
from simple_llama.errors import InputError

ROW = {"Template": ["CUSTOM"], "User": ["q1", "q2"], "Assistant": ["a1", "a2"]}
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
        (b"\xef\xbb\xbf[{}]", "byte order mark; remove it with: sed"),
        ("[{}]".encode("utf-16"), "UTF-16"),
        ("[{}]".encode("utf-16-le"), "UTF-16"),
        (b"PK\x03\x04\x00\x00", "UTF-16 or binary"),
        (b'[{"a": "caf\xe9"}]', r"not UTF-8 text \(byte 11\)"),
        (b'{"a": 1}\n{"a": "caf\xe9"}\n', r"not UTF-8 text \(byte 19\)"),
        (b"id,question\n1,what?\n", r"neither a JSON array nor JSONL.*line 1: not JSON"),
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
    monkeypatch.setattr(rows, "MAX_ROW", 10_000)
    monkeypatch.setattr(rows, "CHUNK_BYTES", 100)
    path = write(tmp_path, b'["' + b"x" * 10**6)
    with open(path, "rb") as file:
        with pytest.raises(InputError, match="no end within 10000 characters"):
            list(rows._array_rows(path, "x", file))
        assert file.tell() < 50_000


def test_a_line_without_end_is_rejected_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_ROW", 2000)
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
    for name in ("b.json", "a.jsonl", "sub/c.json", "notes.txt", ".hidden.json"):
        write(tmp_path, json.dumps({"from": name}), name)
    assert [row.id for row in read_rows(tmp_path)] == ["a.jsonl[0]", "b.json[0]", "sub/c.json[0]"]


def test_paths_that_are_no_conversations(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        list(read_rows(tmp_path / "missing.json"))
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(InputError, match=r"no \*.json or \*.jsonl"):
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


def test_simple_llama_rows() -> None:
    conversation = to_conversation({**ROW, "Category": "facts"})
    assert [turn["content"] for turn in conversation.turns] == ["q1", "a1", "q2", "a2"]
    assert conversation.system is None and conversation.category == "facts"
    assert to_conversation({**ROW, "Template": ["Be brief."]}).system == "Be brief."


def test_a_bare_string_is_a_list_of_one_and_not_its_first_letter() -> None:
    row = {"Template": "CUSTOM", "User": "What?", "Assistant": "That."}
    conversation = to_conversation(row)
    assert conversation.system is None
    assert [turn["content"] for turn in conversation.turns] == ["What?", "That."]
    assert to_conversation({**row, "Template": "Be brief."}).system == "Be brief."


def test_messages_rows() -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    conversation = to_conversation({"messages": messages, "category": None})
    assert (conversation.system, conversation.turns) == ("s", messages[1:])
    assert to_conversation({"messages": messages[1:]}).system is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], "the row is a list, wanted an object"),
        (None, "the row is null, wanted an object"),
        ({}, "keys none, wanted 'User'"),
        ({"question": "q"}, "keys 'question', wanted 'User'"),
        ({"User": ["q1", "q2"], "Assistant": ["a"]}, "'User' has 2 turns, 'Assistant' 1"),
        ({"User": ["q"]}, "no 'Assistant'"),
        ({"User": [], "Assistant": []}, "'User' and 'Assistant' are empty"),
        ({"User": [1], "Assistant": ["a"]}, "'User'[0] is a number, wanted text"),
        ({"User": {"q": 1}, "Assistant": ["a"]}, "'User' is an object, wanted a list of texts"),
        ({**ROW, "Template": ["a", "b"]}, "'Template' has 2 system prompts, wanted 1"),
        ({**ROW, "Category": 7}, "'Category' is a number, wanted text"),
        ({"messages": "hi"}, "'messages' is text, wanted a list"),
        ({"messages": []}, "'messages' holds no user turn"),
        ({"messages": ["hi"]}, "messages[0] is text, wanted an object"),
        (
            {"messages": [{"role": "user", "content": None}]},
            "messages[0]: 'content' is null, wanted text",
        ),
        (
            {"messages": [{"role": "assistant", "content": "a"}]},
            "messages[0]: role 'assistant', wanted 'user'",
        ),
        (
            {"messages": [{"role": "user", "content": "q"}]},
            "the last message is not the assistant's",
        ),
    ],
)
def test_a_row_of_the_wrong_shape_says_precisely_why(value: Any, message: str) -> None:
    with pytest.raises(RowError) as error:
        to_conversation(value)
    assert message in str(error.value) and error.value.reason


def test_a_repeated_key_rejects_the_row(tmp_path: Path) -> None:
    path = write(tmp_path, '[{"User": "q", "User": "r", "Assistant": "a"}]')
    with pytest.raises(RowError, match="key 'User' stands twice"):
        to_conversation(values(path)[0])
