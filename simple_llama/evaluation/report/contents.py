"""What the report of a run shows, from the files that the stages before it wrote."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simple_llama.brief import brief
from simple_llama.data.tokens import Tokens
from simple_llama.evaluation.dataset import TOKENIZER, TRAIN_TOKENS, VAL_TOKENS
from simple_llama.evaluation.report.page import ReportInput
from simple_llama.evaluation.summary import rounding_in_words
from simple_llama.files import read_csv, read_json
from simple_llama.model.device import is_deterministic, pick_device
from simple_llama.pages.numbers import things
from simple_llama.params.process import ProcessParams
from simple_llama.params.reading import Params
from simple_llama.params.tracking import TrackingParams
from simple_llama.params.train import TrainParams

HISTOGRAM_BUCKETS = 24
REPLIES = {"last_reply": "the last reply", "all_replies": "every reply"}
"""Which are trained, by the value of `supervise`."""


def read_contents(
    scores: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    worst: Sequence[Mapping[str, Any]],
    params: Params,
) -> ReportInput:
    """Put what evaluate found beside the reports of the other stages in the current folder."""
    lengths = np.concatenate([Tokens.read(path).lengths for path in (TRAIN_TOKENS, VAL_TOKENS)])
    return ReportInput(
        prepare=read_json("reports/prepare.json"),
        tokenize=read_json("reports/tokenize.json"),
        train=read_json("reports/train.json"),
        evaluation=scores,
        train_curve=read_csv("reports/curves/train.csv"),
        val_curve=read_csv("reports/curves/val.csv"),
        lengths=histogram(lengths),
        samples=samples,
        worst=worst,
        params=params.without(TrackingParams, ProcessParams),
        facts=facts(params) | _rounding(scores),
    )


def histogram(lengths: np.ndarray[Any, np.dtype[np.int64]]) -> list[tuple[int, int, int]]:
    """Count lengths in buckets of equal width: (from, to inclusive, examples), in tokens."""
    width = -(-int(lengths.max()) // HISTOGRAM_BUCKETS)
    counts = np.bincount((lengths - 1) // width)
    return [(i * width + 1, (i + 1) * width, int(n)) for i, n in enumerate(counts)]


def facts(params: Params) -> dict[str, str]:
    """Say what was trained on what: label to text."""
    values = params.values
    weights = f"LoRA, rank {values['lora_rank']}" if values["lora_rank"] else "all weights"
    weights += f", dropout {values['dropout']}" if values["dropout"] else ""
    prompt_format = read_json(Path(TOKENIZER, "tokenizer_config.json"))["prompt_format"]
    return {
        "Base model": values["model_path"],
        "Data": values["ft_json_path"],
        "Tokenizer": f"{values['tokenizer_path']}, prompt format {prompt_format}",
        "Repeatable": _repeatable(params.section(TrainParams)),
        "Trained": f"{weights}, on {REPLIES[values['supervise']]} of each conversation",
        "Optimizer step": things(values["batch_size"] * values["grad_accum_steps"], "example"),
        "Learning rate": _learning_rate(values),
    }


def _learning_rate(values: Mapping[str, Any]) -> str:
    """As charts and terminals write it."""
    highest, lowest = brief(values["max_lr"]), brief(values["min_lr"])
    return (
        highest
        if values["lr_schedule"] == "constant"
        else (f"{highest}, falling to {lowest} ({values['lr_schedule']})")
    )


def _rounding(scores: Mapping[str, Any]) -> dict[str, str]:
    said = rounding_in_words(scores)
    return {"Base in 4 bits": said} if said else {}


def _repeatable(params: TrainParams) -> str:
    """How exactly the same training gives the same weights, where it runs."""
    device = pick_device(params.device)
    if is_deterministic(device) and params.enable_compilation is not True:
        return f"byte for byte on {device.type}, with the same kind of processor and thread count"
    what = "compiled code" if is_deterministic(device) else device.type
    return f"closely but not byte for byte: {what} may add in another order"
