"""What rows and messages say about their training decides the mask, or the row is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simple_llama.data.examples import to_example
from simple_llama.data.formats import ConversationReader
from simple_llama.data.preparation import prepare
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.rows import Row, RowError
from simple_llama.data.supervision import UntrainedRow
from simple_llama.errors import InputError
from simple_llama.evaluation.held_out import HeldOut
from simple_llama.params.evaluate import EvaluateParams
from simple_llama.params.reading import Params
from tests.support.conversations import params, read, row, rows, write
from tests.support.project import COMMITTED
from tests.support.tokenized import params as token_params
from tests.support.tokenized import tokenize

YES = [{"train": True}, {"training": 1}, {"masked": False}, {"loss": 1}, {"weight": 1.0}]
NO = [
    *({key: False} for key in ("train", "training", "trainable", "learn")),
    *({key: True} for key in ("masked", "mask")),
    *({key: 0} for key in ("weight", "loss_weight", "loss", "loss_mask")),
]
SAYS_NOTHING: list[dict[str, Any]] = [{}, {"train": None}, {"weight": None, "mask": None}]


def chat(*flags: dict[str, Any], user: dict[str, Any] | None = None) -> dict[str, Any]:
    """A turn for each flag, which its reply carries."""
    messages: list[dict[str, Any]] = []
    for index, flag in enumerate(flags):
        messages.append({"role": "user", "content": f"q{index}", **(user or {})})
        messages.append({"role": "assistant", "content": f"a{index}", **flag})
    return {"messages": messages}


def converted(value: Any, data_format: str = "auto") -> list[dict[str, Any]]:
    read_row = ConversationReader(data_format)
    return to_example(Row("a[0]", "a", value, json.dumps(value)), read_row, "").messages[1:]


def supervised(tokenizer: Path, value: Any, supervise: Any) -> list[str]:
    """The texts of the replies that are targets."""
    chat_tokenizer = ChatTokenizer.from_path(
        tokenizer, prompt_format="simple_llama", system_prompt="s"
    )
    [(ids, mask)] = chat_tokenizer.encode([converted(value)], supervise)
    # a reply ends in its stop token, which is a target too
    stops = np.flatnonzero(mask & (ids == chat_tokenizer.stop_id))
    starts = [int(np.flatnonzero(~mask[:stop])[-1]) + 1 for stop in stops]
    return [chat_tokenizer.decode(ids[start:stop]) for start, stop in zip(starts, stops)]


@pytest.mark.parametrize("no", NO, ids=str)
@pytest.mark.parametrize("yes", YES, ids=str)
def test_flags_decide_the_mask(tiny_tokenizer: Path, yes: Any, no: Any) -> None:
    for supervise in ("last_reply", "all_replies"):
        assert supervised(tiny_tokenizer, chat(yes, no, yes), supervise) == ["a0", "a2"]
        assert supervised(tiny_tokenizer, chat(no, yes, no), supervise) == ["a1"]


@pytest.mark.parametrize("nothing", SAYS_NOTHING, ids=str)
def test_without_a_flag_supervise_decides(tiny_tokenizer: Path, nothing: Any) -> None:
    value = chat(nothing, nothing, {"train": True}, nothing)
    assert supervised(tiny_tokenizer, value, "last_reply") == ["a2", "a3"]
    assert supervised(tiny_tokenizer, value, "all_replies") == ["a0", "a1", "a2", "a3"]
    value = chat(nothing, {"train": False})
    assert supervised(tiny_tokenizer, value, "all_replies") == ["a0"]
    assert supervised(tiny_tokenizer, value, "last_reply") == []


def test_what_follows_the_last_trained_reply_is_cut_off(tiny_tokenizer: Path) -> None:
    tokenizer = ChatTokenizer.from_path(
        tiny_tokenizer, prompt_format="simple_llama", system_prompt="s"
    )
    [(ids, mask)] = tokenizer.encode([converted(chat({"train": 1}, {"train": 0}))], "last_reply")
    [(alone, its_mask)] = tokenizer.encode([converted(chat({}))], "last_reply")
    assert ids.tolist() == alone.tolist() and mask.tolist() == its_mask.tolist()


@pytest.mark.parametrize("flag", [*YES, *NO, {"weight": 0.5}], ids=str)
def test_flags_of_a_users_turn_change_nothing(flag: Any) -> None:
    assert [m["content"] for m in converted(chat({}, user=flag))] == ["q0", "a0"]


def test_parts_carry_weights_too() -> None:
    def reply(*weights: Any) -> list[dict[str, Any]]:
        parts = [{"type": "text", "text": "a", "weight": weight} for weight in weights]
        value = chat({}, {})
        value["messages"][1]["content"] = parts
        return converted(value)

    assert reply(0, 0)[1]["weight"] == 0 and reply(1)[1]["weight"] == 1
    assert "weight" not in reply(None, None)[1]
    with pytest.raises(RowError, match="its parts have different weights"):
        reply(0, 1)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"weight": 0.5}, "'weight' is 0.5, wanted 0, 1, true or false"),
        ({"loss_mask": [0, 1]}, "'loss_mask' is list, wanted 0, 1"),
        ({"train": "yes"}, "'train' is str, wanted 0, 1"),
        ({"train": True, "weight": 0}, "'train' and 'weight' contradict each other"),
        ({"train_detail": [{"begin_offset": 0}]}, "trained as a whole"),
    ],
)
def test_what_cannot_be_followed_is_named(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(RowError, match=said):
        converted(chat(flags))


@pytest.mark.parametrize(
    "value",
    [
        {**chat({}), "weight": 0},
        {"instruction": "q", "output": "a", "sample_weight": 0.0},
        {"User": ["q"], "Assistant": ["a"], "loss_weight": 0},
        {"instruction": "q", "output": "a", "mask": True},
        {"instruction": "q", "output": "a", "learn": False, "weight": ""},
        {"instruction": "q", "output": "a", "weight": " 0"},
        {"prompt": "q", "completion": "a", "train": False},
        chat({"train": False}),
        chat({"weight": 0}, {"masked": True}),
    ],
)
def test_a_row_of_which_nothing_is_trained_is_left_out(value: Any) -> None:
    with pytest.raises(UntrainedRow):
        converted(value)


def test_a_rows_fractional_weight_is_named_and_its_loss_is_a_score() -> None:
    with pytest.raises(RowError, match=r"the row: 'sample_weight' is 0\.5"):
        converted({**chat({}), "sample_weight": 0.5})
    assert converted({**chat({}), "loss": 0.53})


def test_unwanted_answers_are_rejected_and_pairs_read_where_asked_for() -> None:
    liked = {"prompt": "q", "completion": "a", "label": True}
    assert converted(liked)
    for label in (False, "False"):
        for value in (liked, {"instruction": "q", "output": "a"}, chat({})):
            with pytest.raises(RowError, match="'label' is false"):
                converted({**value, "label": label})
    texts = [["q", "a"]] * 3
    pairs = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"chosen": chat({})["messages"], "rejected": []},
        {"prompt": [{"role": "user", "content": "q"}], "chosen": [chat({})["messages"][1]]},
    ]
    found = [[m["content"][0] for m in converted(pair, "preference")] for pair in pairs]
    assert found == texts
    with pytest.raises(RowError, match="data_format: preference reads the chosen side"):
        converted(pairs[0])


def test_what_is_left_out_is_counted_from_the_file_to_the_tokens(
    tmp_path: Path, tiny_tokenizer: Path
) -> None:
    odd = [row("x", weight=0), chat({"train": True}, {"train": False})]
    (tmp_path / "raw").mkdir()
    write(tmp_path / "raw", [*rows(40), odd[0]])
    lines = [json.dumps(value) for value in (odd[1], chat({}, {"weight": 0}), chat({"loss": 0}))]
    (tmp_path / "raw/flagged.jsonl").write_text("\n".join(lines))
    report = prepare(params(tmp_path / "raw"), tmp_path)
    assert (report["examples"], report["untrained"], report["rejected"]) == (42, 2, 0)
    records = [r for side in ("train", "val") for r in read(tmp_path / f"{side}.jsonl")]
    weights = {r["id"]: [m.get("weight") for m in r["messages"][2::2]] for r in records}
    assert weights["flagged.jsonl[0]"] == [1, 0] and weights["raw.json[0]"] == [None]

    tokens = tokenize(token_params(tiny_tokenizer), tmp_path, tmp_path / "tokens")
    assert tokens["dropped_untrained"] == 1 and tokens["dropped_too_long"] == 0
    assert tokens["train_examples"] + tokens["val_examples"] == 41
    [dropped] = read(tmp_path / "tokens/dropped.jsonl")
    assert (dropped["id"], dropped["length"]) == ("flagged.jsonl[1]", 0)


def test_a_split_of_which_nothing_is_trained_is_named(tmp_path: Path, tiny_tokenizer: Path) -> None:
    record = {"id": "a", "messages": converted(chat({}, {"weight": 0}))}
    for name in ("train", "val"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(InputError, match="none of its 1 examples trains a reply"):
        tokenize(token_params(tiny_tokenizer), tmp_path, tmp_path / "tokens")


def test_a_held_out_file_counts_what_is_not_scored(tmp_path: Path, tiny_tokenizer: Path) -> None:
    path = tmp_path / "held.jsonl"
    long = {"instruction": "q " * 500, "output": "a"}
    scored = {"instruction": "q", "output": "a"}
    none = {"messages": chat({"weight": 0})["messages"]}
    path.write_text(
        "".join(f"{json.dumps(one)}\n" for one in (long, scored, scored | {"weight": 0}))
    )
    tokenizer = ChatTokenizer.from_path(
        tiny_tokenizer, prompt_format="simple_llama", system_prompt="s"
    )
    settings = Params(COMMITTED).section(EvaluateParams)
    held_out = HeldOut.read(str(path), tokenizer, settings)
    assert (len(held_out.tokens), held_out.left_out) == (1, 2)
    path.write_text(json.dumps(none) + "\n")
    with pytest.raises(InputError, match=r"none of its 1 examples \(1 exclude themselves\) has"):
        HeldOut.read(str(path), tokenizer, settings)
