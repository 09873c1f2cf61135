"""What baseline writes of the base is what evaluate reads, to the last bit."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.tokens import Tokens
from simple_llama.errors import InputError
from simple_llama.evaluation.baseline import read_baseline, write_baseline
from simple_llama.evaluation.dataset import EvalDataset
from simple_llama.evaluation.metrics import evaluate, summarise
from simple_llama.params.evaluate import EvaluateParams
from simple_llama.params.reading import Params
from tests.support.models import random_model
from tests.support.project import ROOT


@pytest.fixture
def dataset(tiny_tokenizer: Path) -> EvalDataset:
    tokenizer = ChatTokenizer.from_path(
        tiny_tokenizer, prompt_format="simple_llama", system_prompt="", model_max_length=64
    )
    texts = ["Sort", "How many", "a \u2028 line", "pear"] * 3
    conversations = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": text * (1 + i % 4)}]
        for i, text in enumerate(texts)
    ]
    pairs = list(tokenizer.encode(conversations, "last_reply"))
    return EvalDataset(
        tokens=Tokens.from_examples(pairs),
        tokenizer=tokenizer,
        ids=[str(i) for i in range(len(pairs))],
        categories=["odd" if i % 2 else "even" for i in range(len(pairs))],
        description="",
    )


def test_what_is_written_is_what_is_read(dataset: EvalDataset, tmp_path: Path) -> None:
    params = Params(ROOT / "params.yaml").section(EvaluateParams)
    params = dataclasses.replace(params, exact_match_max_tokens=6, precision="fp32")
    model = random_model(vocab_size=dataset.tokenizer.vocab_size)
    scored = evaluate(model, dataset.tokens, dataset.tokenizer, params)
    short = set(scored.matches)
    assert short and short < set(scored.replies), "some are scored, and some long ones answered"
    write_baseline(scored, tmp_path / "baseline.jsonl")
    again = read_baseline(dataset, tmp_path / "baseline.jsonl")
    for name in ("loss", "tokens", "correct"):
        mine, theirs = getattr(scored.scores, name), getattr(again.scores, name)
        assert mine.dtype == theirs.dtype
        assert np.array_equal(mine, theirs)
    assert (again.replies, again.matches) == (scored.replies, scored.matches)
    assert again.references == scored.references
    report = [summarise(scored, base, dataset.categories, "") for base in (scored, again)]
    assert report[0] == report[1]
    write_baseline(again, tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "baseline.jsonl").read_bytes()


def test_the_baseline_of_other_examples_is_refused(dataset: EvalDataset, tmp_path: Path) -> None:
    path = tmp_path / "baseline.jsonl"
    path.write_text('{"loss": 1.0, "tokens": 2, "correct": 0}\n')
    with pytest.raises(InputError, match=r"1 examples, wanted the 12 that are evaluated: run `dvc"):
        read_baseline(dataset, path)
