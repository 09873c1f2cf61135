"""Rows → train and val: nothing lost, nothing on both sides, nothing half-written."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from simple_llama.data.examples import read_examples
from simple_llama.data.normalisation import normalised, prompt_pattern
from simple_llama.data.preparation import prepare
from simple_llama.errors import InputError
from tests.support.conversations import SYSTEM, params, read, row, rows, write


def test_what_a_prepared_record_looks_like(tmp_path: Path) -> None:
    raw = [row("q0", "a0", Category="facts"), row("q1", Template="Be brief."), *rows(40)]
    prepare(params(write(tmp_path, raw)), tmp_path)
    records = {
        record["id"]: record
        for side in ("train", "val")
        for record in read(tmp_path / f"{side}.jsonl")
    }
    assert records["raw.json[0]"] == {
        "id": "raw.json[0]",
        "category": "facts",
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": "q0"},
            {"role": "assistant", "content": "a0"},
        ],
    }
    assert records["raw.json[1]"]["messages"][0]["content"] == "Be brief."
    assert "category" not in records["raw.json[1]"]


@pytest.mark.parametrize("blank", ["", " \n"])
def test_a_blank_system_prompt_is_none_and_a_missing_one_the_default(
    blank: str, tmp_path: Path
) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    said = [{"role": "system", "content": blank}, *turns]
    pairs: list[tuple[Any, str]] = [
        ({"messages": said}, ""),
        ({"messages": turns}, SYSTEM),
        ({"messages": turns, "system": blank}, SYSTEM),
        (row("q", Template=[blank]), ""),
        (row("q", Template=["CUSTOM"]), SYSTEM),
        ({"instruction": "q", "output": "a", "system": blank}, SYSTEM),
    ]
    for asked, system in pairs:
        (example,) = read_examples(write(tmp_path, [asked]), SYSTEM)
        assert example.messages[0] == {"role": "system", "content": system}


def test_report_and_rejected_rows(tmp_path: Path) -> None:
    bad = [{"User": ["a", "b"], "Assistant": ["c"]}, row("q", " \n"), row("\0"), row("\ud800")]
    raw = [*rows(50), *bad, row("question 3"), row("question 4")]
    report = prepare(params(write(tmp_path, raw)), tmp_path)
    assert {key: report[key] for key in list(report)[:4]} == {
        "examples": 56,
        "kept": 50,
        "rejected": 4,
        "duplicates": 2,
    }
    assert report["train"] + report["val"] == 50
    assert report["rejected_by_reason"] == {
        "empty text": 1,
        "forbidden character": 2,
        "turns do not pair up": 1,
    }
    assert read(tmp_path / "rejected.jsonl") == [
        {
            "id": "raw.json[50]",
            "reason": "'User' has 2 turns, 'Assistant' 1",
            "content": bad[0],
        },
        {"id": "raw.json[51]", "reason": "the reply of turn 1 is empty", "content": bad[1]},
        {"id": "raw.json[52]", "reason": "NUL (U+0000) in the text", "content": bad[2]},
        {
            "id": "raw.json[53]",
            "reason": "a lone surrogate (U+D800) in the text",
            "content": json.dumps(bad[3]),
        },
    ]


def test_a_duplicate_is_the_same_to_the_character(tmp_path: Path) -> None:
    """Case, indentation and superscripts mean something, but not for the side of the split."""
    replies = ["if x:\n    y()", "if x:\n  y()", "If x:\n    y()", "x2", "x\u00b2", "x2 "]
    raw = [*rows(50), *(row("code", reply) for reply in replies), row("Code ", "x2")]
    report = prepare(params(write(tmp_path, [*raw, row("code", "x2")])), tmp_path)
    assert report["kept"] == 57 and report["duplicates"] == 1
    assert read(tmp_path / "duplicates.jsonl") == [{"id": "raw.json[57]"}]
    found = {
        side
        for side in ("train", "val")
        for record in read(tmp_path / f"{side}.jsonl")
        if record["messages"][1]["content"].strip().lower() == "code"
    }
    assert len(found) == 1


def sides(path: Path, folder: Path, **changes: Any) -> dict[str, str]:
    """First prompt → train or val."""
    prepare(params(path, **changes), folder)
    return {
        record["messages"][1]["content"]: side
        for side in ("train", "val")
        for record in read(folder / f"{side}.jsonl")
    }


def test_adding_rows_never_moves_an_old_one(tmp_path: Path) -> None:
    raw = rows(300)
    old = sides(write(tmp_path, raw), tmp_path)
    new = sides(write(tmp_path, [*rows(900)[::-1], row("another")]), tmp_path)
    assert {prompt: new[prompt] for prompt in old} == old
    assert 0.7 < list(new.values()).count("train") / len(new) < 0.9
    other_seed = sides(write(tmp_path, raw), tmp_path, seed=90)
    assert other_seed != old
    # a larger share only ever moves examples from val to train
    larger = sides(write(tmp_path, raw), tmp_path, train_split=0.9)
    assert all(larger[prompt] == "train" for prompt in old if old[prompt] == "train")


def test_the_same_prompt_never_stands_on_both_sides(tmp_path: Path) -> None:
    raw = [
        row(form.format(index), f"reply {reply}")
        for index in range(60)
        for reply, form in enumerate(("is it {}?", "Is it  {}?", "is\u00a0it {}?\n", "IS IT {}?"))
    ]
    prepare(params(write(tmp_path, raw)), tmp_path)
    prompts = {
        side: {normalised(one.first_prompt) for one in read_examples(tmp_path / f"{side}.jsonl")}
        for side in ("train", "val")
    }
    assert prompts["train"] and prompts["val"] and not prompts["train"] & prompts["val"]


def test_share_of_val_prompts_that_follow_a_train_prompts_pattern(tmp_path: Path) -> None:
    raw = [row(f"How many has Anna got of {index}?") for index in range(200)]
    assert prepare(params(write(tmp_path, raw)), tmp_path)["val_prompts_like_train"] == 1.0
    letters = "abcdefghijklmnop"
    raw = [row(f"tell me about {a}{b}") for a in letters for b in letters]
    assert prepare(params(write(tmp_path, raw)), tmp_path)["val_prompts_like_train"] == 0.0


def test_pattern_is_the_same_for_ascii_and_other_text() -> None:
    assert prompt_pattern("Is Anna  12 or 3B?") == "A A 0 or 0A?"
    assert prompt_pattern("Is Änna 12 or 3B, é?") == "A A 0 or 0A, é?"


@pytest.mark.parametrize(
    ("raw", "changes", "message"),
    [
        (
            [*rows(20), row("", "a"), row("x", ""), {}],
            {"max_rejected": 0.1},
            r"3 of 23 examples rejected.*'empty text' \(2\), first raw.json\[20\]: the prompt of",
        ),
        ([{}, {}], {}, "no example left"),
        ([row("one")] * 5, {}, "no example on the (validation|training) side of 1"),
    ],
)
def test_nothing_half_written_when_it_stops(
    tmp_path: Path, raw: list[Any], changes: dict[str, Any], message: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match=message):
        prepare(params(write(tmp_path, raw), **changes), out)
    assert {path.name for path in out.iterdir()} == {"duplicates.jsonl", "rejected.jsonl"}


def test_an_unreadable_file_leaves_the_last_result_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(params(write(tmp_path, rows(50))), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(rows(50))[:-20])
    with pytest.raises(InputError, match="truncated"):
        prepare(params(bad), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def check_any_bytes(folder: Path, data: bytes, **changes: Any) -> int | None:
    """A valid split with kept + rejected + duplicates = examples, or one clear line.

    The number of examples, or None.
    """
    path = folder / "any.json"
    path.write_bytes(data)
    try:
        report = prepare(params(path, train_split=0.5, **changes), folder / "out")
    except InputError as error:
        assert str(error) and "\n" not in str(error)
        return None
    written = {name: read(folder / "out" / f"{name}.jsonl") for name in ("train", "val")}
    assert report["kept"] == len(written["train"]) + len(written["val"])
    assert report["rejected"] == len(read(folder / "out" / "rejected.jsonl"))
    assert report["duplicates"] == len(read(folder / "out" / "duplicates.jsonl"))
    assert report["rejected"] == sum(report["rejected_by_reason"].values())
    assert report["kept"] + report["rejected"] + report["duplicates"] == report["examples"]
    for side in written:
        for one in read_examples(folder / "out" / f"{side}.jsonl"):
            system, *turns = one.messages  # the system prompt may be said to be none
            assert system["content"] == "" or system["content"].strip()
            assert all(message["content"].strip() for message in turns)
    examples: int = report["examples"]
    return examples


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.booleans())
@example(b"[" + b"{}," * 3 + b"{}]", False)
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes, packed: bool) -> None:
    data = gzip.compress(data) if packed else data
    check_any_bytes(tmp_path_factory.getbasetemp(), data)


TEXT = st.text(max_size=5) | st.sampled_from(["CUSTOM", "<EOA>", "\ud800", "\0", " ", "q\r\n"])
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ROLE = st.sampled_from(["system", "user", "assistant", "human", "gpt", "tool", "function_call"])
PART = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"]), "text": TEXT}) | ANY
CONTENT = TEXT | st.lists(PART, max_size=2) | ANY
TURNS = st.lists(
    st.fixed_dictionaries({"role": ROLE, "content": CONTENT}, optional={"tool_calls": ANY})
    | st.fixed_dictionaries({"from": ROLE | ANY, "value": CONTENT}),
    max_size=5,
)
ROWS_OF = {
    "simple_llama": {
        "Template": ANY | TEXT,
        "User": ANY | TEXT | st.lists(TEXT, max_size=3),
        "Assistant": ANY | TEXT | st.lists(TEXT, max_size=3),
        "Category": ANY | TEXT,
    },
    "alpaca": {
        "instruction": TEXT | ANY,
        "input": TEXT | ANY,
        "output": TEXT | ANY,
        "history": ANY | st.lists(st.lists(TEXT, min_size=2, max_size=2), max_size=2),
        "images": ANY,
    },
    "sharegpt": {"conversations": TURNS | ANY, "system": TEXT | ANY, "tools": ANY},
    "messages": {"messages": TURNS | ANY, "category": TEXT | ANY},
    "prompt_completion": {"prompt": TEXT | TURNS | ANY, "completion": TEXT | TURNS | ANY},
}
"""Nearly right rows of each format."""
FIRST = {
    "simple_llama": lambda i: row(f"question {i}"),
    "alpaca": lambda i: {"instruction": f"question {i}", "output": "yes"},
    "sharegpt": lambda i: {
        "conversations": [
            {"from": "human", "value": f"question {i}"},
            {"from": "gpt", "value": "y"},
        ]
    },
    "messages": lambda i: {
        "messages": [
            {"role": "user", "content": f"question {i}"},
            {"role": "assistant", "content": "y"},
        ]
    },
    "prompt_completion": lambda i: {"prompt": f"question {i}", "completion": "y"},
}


@pytest.mark.parametrize("name", ROWS_OF)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), as_lines=st.booleans(), named=st.booleans())
def test_any_rows(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    data: st.DataObject,
    as_lines: bool,
    named: bool,
) -> None:
    nearly = st.fixed_dictionaries({}, optional=ROWS_OF[name])
    # the first stand on both sides, and a first line that is a list would open an array
    raw = [*map(FIRST[name], range(8)), *data.draw(st.lists(nearly | ANY, max_size=8))]
    text = "\n".join(map(json.dumps, raw)) if as_lines else json.dumps(raw)
    number = check_any_bytes(
        tmp_path_factory.getbasetemp(), text.encode(), data_format=name if named else "auto"
    )
    assert number == len(raw)


def test_a_conversation_of_ten_thousand_turns(tmp_path: Path) -> None:
    long = {"User": ["q"] * 10_000, "Assistant": ["a"] * 10_000}
    report = prepare(params(write(tmp_path, [long, *rows(50)])), tmp_path)
    assert (report["kept"], report["rejected"]) == (51, 0)


def test_a_conversation_too_long_for_any_model_is_rejected(tmp_path: Path) -> None:
    fits, too_long = row("fits", "\x01" * (4 * 2**20 - 1000)), row("no", "a" * 4 * 2**20)
    report = prepare(params(write(tmp_path, [fits, too_long, *rows(50)])), tmp_path)
    assert report["rejected_by_reason"] == {"too long": 1}
    sides = ("train", "val")
    read_back = [one for side in sides for one in read_examples(tmp_path / f"{side}.jsonl")]
    assert len(read_back) == 51


def test_prepared_files_are_read_back(tmp_path: Path) -> None:
    prepare(params(write(tmp_path, rows(50))), tmp_path)
    first = next(read_examples(tmp_path / "train.jsonl"))
    assert first.id.startswith("raw.json[") and first.messages[0]["content"] == SYSTEM
    (tmp_path / "train.jsonl").write_text('{"messages": []}\n')
    with pytest.raises(
        InputError, match=r"train.jsonl\[0\]: the list of messages holds no user turn"
    ):
        list(read_examples(tmp_path / "train.jsonl"))
