"""Token arrays: what is written is what is read, and nothing else is believed."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from simple_llama.data import encoding as module
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.tokens import Tokens
from simple_llama.errors import InputError
from tests.support.templates import template_folder
from tests.support.tokenized import SYSTEM, params, tokenize


def conversation(index: int, words: int) -> dict[str, Any]:
    return {
        "id": f"raw.json[{index}]",
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"question {index}"},
            {"role": "assistant", "content": "word " * words},
        ],
    }


def write_split(folder: Path, name: str, records: list[dict[str, Any]]) -> None:
    (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in records))


TRAIN = [conversation(index, 1 + index % 4) for index in range(20)]


VAL = [conversation(index, 2) for index in range(20, 23)]


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    write_split(tmp_path, "train", TRAIN)
    write_split(tmp_path, "val", VAL)
    return tmp_path


def expected(tokenizer: Path) -> list[Any]:
    chat = ChatTokenizer.from_path(tokenizer, prompt_format="auto", system_prompt=SYSTEM)
    return chat.encode([one["messages"] for one in TRAIN], "last_reply")


def test_what_is_read_is_what_was_encoded(
    prepared: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 1000)
    report = tokenize(params(tiny_tokenizer), prepared, prepared / "tokens")
    read = Tokens.read(prepared / "tokens/train.safetensors")
    memory = Tokens.from_examples(expected(tiny_tokenizer))
    assert len(read) == len(memory) == 20 and read.ids.dtype == np.uint16
    for name in ("ids", "mask", "starts", "rows", "lengths"):
        assert np.array_equal(getattr(read, name), getattr(memory, name)), name
    val = Tokens.read(prepared / "tokens/val.safetensors")
    lengths = sorted([*read.lengths, *val.lengths])
    assert report == {
        "train_examples": 20,
        "val_examples": 3,
        "dropped_too_long": 0,
        "dropped_untrained": 0,
        "tokens": len(read.ids) + len(val.ids),
        "supervised_tokens": int(read.mask.sum()) + int(val.mask.sum()),
        "unknown_token_rate": 0.0,
        "length_p50": lengths[11],
        "length_p95": lengths[20],
        "length_max": lengths[22],
        "length_p99_all": lengths[22],
    }
    assert json.dumps(report)


def test_the_file_is_safetensors(prepared: Path, tiny_tokenizer: Path) -> None:
    tokenize(params(tiny_tokenizer), prepared, prepared / "tokens")
    path = prepared / "tokens/train.safetensors"
    ours, theirs = Tokens.read(path), load_file(path)
    assert sorted(theirs) == ["ids", "mask", "rows", "starts"]
    for name, array in theirs.items():
        assert np.array_equal(getattr(ours, name), array)
        assert getattr(ours, name).flags.aligned


def test_the_same_input_gives_the_same_bytes(prepared: Path, tiny_tokenizer: Path) -> None:
    for name in ("one", "two"):
        tokenize(params(tiny_tokenizer), prepared, prepared / name)
    files = [path.relative_to(prepared / "one") for path in (prepared / "one").rglob("*.*")]
    assert sorted(str(file) for file in files) == [
        "dropped.jsonl",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "train.safetensors",
        "val.safetensors",
    ]
    for file in files:
        assert (prepared / "one" / file).read_bytes() == (prepared / "two" / file).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("template", [False, True])
def test_on_several_cores_it_writes_the_same_bytes(
    prepared: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, template: bool
) -> None:
    """A chat template has a process of its own on each."""
    if template:
        tiny_tokenizer = template_folder("gemma", prepared / "gemma")
    limit = sorted(len(ids) for ids, _ in expected(tiny_tokenizer))[12]
    chosen = params(tiny_tokenizer, max_seq_len=limit)
    alone = tokenize(chosen, prepared, prepared / "one")
    monkeypatch.setattr(module, "BLOCK_BYTES", 400)
    monkeypatch.setattr(module, "MIN_PARALLEL_BYTES", 0)
    monkeypatch.setattr(module, "available_cores", lambda: 2)
    assert tokenize(chosen, prepared, prepared / "two") == alone
    assert alone["dropped_too_long"] > 0
    for name in ("train.safetensors", "val.safetensors", "dropped.jsonl"):
        assert (prepared / "one" / name).read_bytes() == (prepared / "two" / name).read_bytes()


def test_a_line_may_make_several_examples(tmp_path: Path) -> None:
    folder = template_folder("qwen3", tmp_path / "qwen3")
    two = {"id": "two", "messages": [*TRAIN[0]["messages"], *TRAIN[1]["messages"][1:]]}
    write_split(tmp_path, "train", [TRAIN[2], two, {**two, "id": "three"}, TRAIN[3]])
    write_split(tmp_path, "val", VAL)
    for limit, rows, dropped in (
        (1000, [0, 1, 1, 2, 2, 3], []),
        (60, [0, 1, 2, 3], ["two", "three"]),
    ):
        chosen = params(folder, supervise="all_replies", max_seq_len=limit)
        report = tokenize(chosen, tmp_path, tmp_path / "tokens")
        assert report["train_examples"] == len(rows)
        assert Tokens.read(tmp_path / "tokens/train.safetensors").rows.tolist() == rows
        lines = (tmp_path / "tokens/dropped.jsonl").read_text().splitlines()
        assert [json.loads(line)["id"] for line in lines] == dropped


def test_what_the_chat_template_refuses_is_dropped_by_name(tmp_path: Path) -> None:
    """Counted against max_dropped; not one left is an error."""
    folder = template_folder("gemma", tmp_path / "gemma")
    template = folder / "chat_template.jinja"
    refusing = "{% for m in messages %}{% if 'question 3' in m.content or 'question 1' in m.content"
    refusing += " %}{{ raise_exception('Not\nthat') }}{% endif %}{% endfor %}"
    template.write_text(refusing + template.read_text())
    write_split(tmp_path, "train", TRAIN[2:10])
    write_split(tmp_path, "val", VAL)
    report = tokenize(params(folder), tmp_path, tmp_path / "tokens")
    assert report["dropped_refused"] == 1 and report["train_examples"] == 7
    [line] = (tmp_path / "tokens/dropped.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "id": "raw.json[3]",
        "split": "train",
        "length": 0,
        "reason": "Not that",
    }
    with pytest.raises(InputError, match=r"refuses 1 of 11 .* of 0\.05; first raw\.json\[3\]: Not"):
        tokenize(params(folder, max_dropped=0.05), tmp_path, tmp_path / "tokens")
    write_split(tmp_path, "train", TRAIN[10:12])
    with pytest.raises(InputError, match=r"none of its 2 examples is left, 2 of them refused"):
        tokenize(params(folder), tmp_path, tmp_path / "tokens")


def test_longer_than_max_seq_len_is_dropped_and_listed_but_not_equal(
    prepared: Path, tiny_tokenizer: Path
) -> None:
    lengths = [len(ids) for ids, _ in expected(tiny_tokenizer)]
    limit = sorted(lengths)[12]
    out = prepared / "tokens"
    report = tokenize(params(tiny_tokenizer, max_seq_len=limit), prepared, out)
    long = [row for row, length in enumerate(lengths) if length > limit]
    dropped = [json.loads(line) for line in (out / "dropped.jsonl").open()]
    assert dropped[: len(long)] == [
        {"id": f"raw.json[{row}]", "split": "train", "length": lengths[row]} for row in long
    ]
    assert report["dropped_too_long"] == len(dropped) and report["length_max"] == limit
    read = Tokens.read(out / "train.safetensors")
    assert read.rows.tolist() == [row for row in range(20) if row not in long]
    assert read.lengths.tolist() == [lengths[row] for row in read.rows]


def test_too_many_that_are_longer_stop_the_run_with_the_length_that_keeps_99_percent(
    prepared: Path, tiny_tokenizer: Path
) -> None:
    lengths = sorted(len(ids) for ids, _ in expected(tiny_tokenizer))
    write_split(prepared, "train", [*TRAIN, *(conversation(i, 50) for i in range(100, 200))])
    out = prepared / "tokens"
    tight = params(tiny_tokenizer, max_seq_len=lengths[-1], max_dropped=0.8)
    with pytest.raises(InputError, match=r"100 of 123 .* longer than max_seq_len") as refused:
        tokenize(tight, prepared, out)
    assert list(out.iterdir()) == []
    wider = int(re.findall(r"max_seq_len (\d+) would keep", str(refused.value))[0])
    report = tokenize(params(tiny_tokenizer, max_seq_len=wider, max_dropped=0.0), prepared, out)
    assert report["dropped_too_long"] == 0 and report["length_max"] == wider

    report = tokenize(params(tiny_tokenizer, max_seq_len=wider - 1), prepared, out)
    assert report["length_p99_all"] == wider > report["length_max"]


def test_an_id_that_no_file_can_hold_gives_way_to_the_place(
    prepared: Path, tiny_tokenizer: Path
) -> None:
    write_split(prepared, "train", [*TRAIN, {**conversation(1, 500), "id": "\ud800"}])
    tokenize(params(tiny_tokenizer, max_seq_len=200), prepared, prepared / "tokens")
    [dropped] = map(json.loads, (prepared / "tokens/dropped.jsonl").open())
    assert dropped["id"] == "train.jsonl[20]"


def test_another_format_is_refused_wherever_it_begins(
    prepared: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = {"prompt": "What?", "completion": "That."}
    write_split(prepared, "train", [*TRAIN, foreign, *VAL])
    for size in (1, 1000):
        monkeypatch.setattr(module, "BLOCK_BYTES", size)
        with pytest.raises(InputError, match=r"train.jsonl\[20\]: keys 'prompt', 'completion'"):
            tokenize(params(tiny_tokenizer), prepared, prepared / "tokens")


def test_a_split_that_ends_up_empty_stops_and_writes_nothing(
    prepared: Path, tiny_tokenizer: Path
) -> None:
    write_split(prepared, "val", [conversation(1, 500)])
    out = prepared / "tokens"
    with pytest.raises(InputError, match=r"val.jsonl: every one of its 1 examples is longer"):
        tokenize(params(tiny_tokenizer, max_seq_len=200), prepared, out)
    assert list(out.iterdir()) == []


def test_faulty_prepared_files_are_refused(prepared: Path, tiny_tokenizer: Path) -> None:
    for data, said in (
        ("", "an empty file"),
        ("\n \n", "an empty file"),
        ("\ufeff{}", "starts with a byte order mark"),
        ("\0", "UTF-16 or binary"),
        (json.dumps(VAL), "a JSON array, wanted JSONL"),
    ):
        (prepared / "val.jsonl").write_text(data)
        with pytest.raises(InputError, match=rf"val.jsonl: {said}"):
            tokenize(params(tiny_tokenizer), prepared, prepared / "tokens")
    (prepared / "train.jsonl").write_text('{"messages": "?"}\n')
    with pytest.raises(InputError, match=r"train.jsonl\[0\]: 'messages' is text"):
        tokenize(params(tiny_tokenizer), prepared, prepared / "tokens")


def sound() -> dict[str, Any]:
    return {
        "ids": np.array([5, 6, 7], np.uint16),
        "mask": np.array([0, 1, 1], np.uint8),
        "starts": np.array([0, 1, 3]),
        "rows": np.array([0, 1]),
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ids", np.array([5, 6, 7], np.float32)),
        ("ids", np.array([[5, 6, 7]], np.uint16)),
        ("ids", np.array([5, 6], np.uint16)),
        ("mask", np.array([0, 1], np.uint8)),
        ("starts", np.array([0, 1, 4])),
        ("starts", np.array([1, 2, 3])),
        ("starts", np.array([0, 3, 3])),
        ("starts", np.array([0, 1, 3], np.int32)),
        ("rows", np.array([0])),
        ("rows", np.zeros(0, np.int64)),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(
    tmp_path: Path, field: str, value: Any
) -> None:
    path = tmp_path / "x.safetensors"
    save_file(sound(), path)
    assert Tokens.read(path).lengths.tolist() == [1, 2]
    save_file({**sound(), field: value}, path)
    with pytest.raises(InputError, match=r"x\.safetensors: "):
        Tokens.read(path)


def test_a_file_cut_off_or_altered_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(sound(), path)
    data = path.read_bytes()
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        with pytest.raises(InputError):
            Tokens.read(path)
    header = 8 + int.from_bytes(data[:8], "little")
    for at in range(header):
        for byte in (34, 57):
            path.write_bytes(data[:at] + bytes([byte]) + data[at + 1 :])
            try:
                read = Tokens.read(path)
            except InputError:
                continue
            assert len(read.ids) == len(read.mask) == read.starts[-1]


def test_a_missing_file_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run `dvc repro tokenize` first"):
        Tokens.read(tmp_path / "train.safetensors")
