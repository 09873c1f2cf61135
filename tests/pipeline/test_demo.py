"""The embedded demo: its data is what its script makes, and its committed report holds up."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from models.demo.base import DemoParams, train_tokenizer
from models.demo.conversations import rendered
from models.demo.texts import documents
from simple_llama.params.reading import Params
from simple_llama.params.train import TrainParams

ROOT = Path(__file__).parents[2]
CATEGORIES = {
    "error_correction",
    "factual_questions",
    "identity",
    "instruction_following",
    "long_responses",
    "multi_turn_conversation",
    "reasoning_and_arithmetic",
    "structured_transformation",
}


@pytest.fixture(scope="module")
def conversations() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((ROOT / "data/raw/demo_sft.json").read_bytes())
    return rows


def test_the_script_gives_the_committed_file() -> None:
    assert rendered().encode() == (ROOT / "data/raw/demo_sft.json").read_bytes()


def test_the_conversations_are_many_varied_and_ascii(conversations: list[dict[str, Any]]) -> None:
    assert len(conversations) >= 3000
    assert {row["Category"] for row in conversations} == CATEGORIES
    assert len({row["Template"][0] for row in conversations}) >= 5
    assert (ROOT / "data/raw/demo_sft.json").read_bytes().isascii()
    distinct = {(*row["Template"], *row["User"], *row["Assistant"]) for row in conversations}
    assert len(distinct) == len(conversations)
    assert any(len(row["User"]) > 1 for row in conversations)
    for category in CATEGORIES:
        rows = [row for row in conversations if row["Category"] == category]
        openings = Counter(" ".join(row["User"][0].split()[:3]) for row in rows)
        assert openings.most_common(1)[0][1] <= 0.25 * len(rows), category


def test_the_texts_hold_no_conversation() -> None:
    for text, _ in zip(documents(0), range(2000)):
        assert "<SO" not in text
        assert "User:" not in text
        assert "Assistant:" not in text


def test_nothing_is_unknown_to_the_tokenizer() -> None:
    tokenizer = train_tokenizer([text for text, _ in zip(documents(0), range(200))], 400)
    everything = "".join(map(chr, range(0x250))) + "日本語 \U0001f600\u2028"
    assert tokenizer.decode(tokenizer.encode(everything).ids) == everything
    assert tokenizer.token_to_id("<UNK>") not in tokenizer.encode(everything).ids


def test_the_committed_report_shows_what_the_demo_promises() -> None:
    report = json.loads((ROOT / "reports/eval.json").read_bytes())
    assert report["val_loss"] <= report["base_val_loss"] / 2
    assert report["exact_match"] >= 0.5
    assert report["base_exact_match"] <= 0.02
    scored = {k: v for k, v in report["by_category"].items() if v["exact_match_examples"]}
    assert len(scored) >= 5
    for name, row in scored.items():
        assert row["exact_match_examples"] <= 0.3 * report["exact_match_examples"], name
        if row["exact_match_examples"] >= 20:
            assert row["most_frequent_answer"] <= 0.15, name


def test_the_params_of_the_base_model_are_whole() -> None:
    Params(ROOT / "models/demo/params.yaml", (DemoParams, TrainParams))
