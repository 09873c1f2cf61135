"""Scoring the base and the tuned model; the base's scores and answers as a file.

models/baseline.jsonl has a line for each example, in their order. `loss` is in nats, summed over
the example's `tokens` supervised tokens; `correct` counts those that were the most likely ones.
Where the example was answered, `reply` stands there too, and `match` where exact match was scored.
Floats are written so that they are read back exactly.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simple_llama.errors import InputError
from simple_llama.evaluation.dataset import EvalDataset
from simple_llama.evaluation.metrics import Evaluation, evaluate, reference
from simple_llama.files import write_json_lines
from simple_llama.model.checkpoint import check_fits
from simple_llama.model.folder import load_model
from simple_llama.params.base import BaseParams
from simple_llama.params.evaluate import EvaluateParams
from simple_llama.params.reading import Params
from simple_llama.training.distributed import Ranks
from simple_llama.training.loss import Scores

BASELINE = Path("models/baseline.jsonl")


def run_baseline(device: torch.device, ranks: Ranks, all_params: Params) -> None:
    """The work of the stage baseline: score the base on this device, together with all ranks."""
    params = all_params.section(EvaluateParams)
    base = all_params.section(BaseParams).model_path
    evaluation = score_base(base, EvalDataset.read(params), device, ranks, params)
    if ranks.is_main:
        write_baseline(evaluation)


def score_base(
    folder: str, dataset: EvalDataset, device: torch.device, ranks: Ranks, params: EvaluateParams
) -> Evaluation:
    """Score the base model. New tokens get the embeddings that training would start from."""
    return _score(folder, dataset, device, ranks, params, untrained=True)


def score_tuned(
    folder: str, dataset: EvalDataset, device: torch.device, ranks: Ranks, params: EvaluateParams
) -> Evaluation:
    """Score a model that train wrote."""
    return _score(folder, dataset, device, ranks, params, untrained=False)


def _score(
    folder: str,
    dataset: EvalDataset,
    device: torch.device,
    ranks: Ranks,
    params: EvaluateParams,
    *,
    untrained: bool,
) -> Evaluation:
    tokenizer, size = dataset.tokenizer, dataset.tokenizer.vocab_size
    check_fits(folder, size, params.max_seq_len, added_tokens=tokenizer.added_tokens)
    print(f"scoring {folder} on {len(dataset.tokens):,} examples", flush=True)
    model = load_model(
        folder,
        device,
        fused=params.use_flash_attention,
        vocab_size=size,
        trained_vocab_size=tokenizer.base_vocab_size if untrained else None,
        control_ids=tokenizer.control_ids.values() if untrained else (),
    )
    return evaluate(model, dataset.tokens, tokenizer.for_model(folder), params, ranks)


def write_baseline(evaluation: Evaluation, path: Path = BASELINE) -> None:
    """Write one line for each example."""
    write_json_lines(path, _rows(evaluation))


def _rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    scores = evaluation.scores
    columns = (scores.loss.tolist(), scores.tokens.tolist(), scores.correct.tolist())
    for example, (loss, tokens, correct) in enumerate(zip(*columns, strict=True)):
        row = {"loss": loss, "tokens": tokens, "correct": correct}
        if example in evaluation.replies:
            row["reply"] = evaluation.replies[example]
        if example in evaluation.matches:
            row["match"] = evaluation.matches[example]
        yield row


def read_baseline(dataset: EvalDataset, path: Path = BASELINE) -> Evaluation:
    """Read what write_baseline wrote. Raises InputError where it is of other examples."""
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    if len(rows) != len(dataset.tokens):
        raise InputError(
            f"{path}: {len(rows):,} examples, wanted the {len(dataset.tokens):,} that are "
            "evaluated: run `dvc repro baseline` first"
        )
    matches = {i: bool(row["match"]) for i, row in enumerate(rows) if "match" in row}
    return Evaluation(
        Scores(
            np.array([row["loss"] for row in rows], np.float64),
            np.array([row["tokens"] for row in rows], np.int64),
            np.array([row["correct"] for row in rows], np.int64),
        ),
        {i: row["reply"] for i, row in enumerate(rows) if "reply" in row},
        matches,
        {i: reference(dataset.tokens, dataset.tokenizer, i) for i in matches},
    )
