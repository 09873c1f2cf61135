"""What the report of a run shows, from the files that the stages before it wrote."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simple_llama.brief import brief
from simple_llama.data.tokens import Tokens
from simple_llama.evaluation.dataset import CHOSE_BEST, TOKENIZER, TRAIN_TOKENS, VAL_TOKENS
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
RATE_DIGITS = 7
"""Of a learning rate in a curve."""
CHOSE_NOTHING = "There was one checkpoint, so it chose none."
REPLIES = {"last_reply": "the last reply", "all_replies": "every reply"}
"""Which are trained, by the value of `supervise`."""


def read_contents(
    scores: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    worst: Sequence[Mapping[str, Any]],
    params: Params,
) -> ReportInput:
    """Put what evaluate found beside the reports of the other stages in the current folder."""
    trained, validated = Tokens.read(TRAIN_TOKENS), Tokens.read(VAL_TOKENS)
    train_curve, val_curve = (read_csv(f"reports/curves/{name}.csv") for name in ("train", "val"))
    return ReportInput(
        prepare=read_json("reports/prepare.json"),
        tokenize=read_json("reports/tokenize.json"),
        train=read_json("reports/train.json"),
        evaluation={**scores, "data": chosen_from(scores["data"], len(val_curve))},
        train_curve=train_curve,
        val_curve=val_curve,
        lengths=histogram(np.concatenate([trained.lengths, validated.lengths])),
        supervised=(int(np.count_nonzero(trained.mask)), len(trained.ids)),
        samples=samples,
        worst=worst,
        params=params.without(TrackingParams, ProcessParams),
        facts=facts(params, [row["lr"] for row in train_curve]) | _rounding(scores),
    )


def histogram(lengths: np.ndarray[Any, np.dtype[np.int64]]) -> list[tuple[int, int, int]]:
    """Count lengths in buckets of equal width: (from, to inclusive, examples), in tokens."""
    width = -(-int(lengths.max()) // HISTOGRAM_BUCKETS)
    counts = np.bincount((lengths - 1) // width)
    return [(i * width + 1, (i + 1) * width, int(n)) for i, n in enumerate(counts)]


def facts(params: Params, rates: Sequence[float]) -> dict[str, str]:
    """Say what was trained on what: label to text. rates: the learning rate of each step."""
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
        "Learning rate": learning_rate(values, rates),
    }


def learning_rate(values: Mapping[str, Any], rates: Sequence[float]) -> str:
    """What the steps had, by their own record: a limit on steps may leave the warmup alone."""
    highest, last = brief(max(rates), RATE_DIGITS), brief(rates[-1], RATE_DIGITS)
    if len(rates) <= values["warmup_iterations"]:
        return f"rising to {highest}: every step was one of the warmup"
    return highest if highest == last else f"{highest}, falling to {last} ({values['lr_schedule']})"


def chosen_from(data: str, validations: int) -> str:
    """What was evaluated, of a training with so many validations of the whole split."""
    return data if validations > 1 else data.replace(CHOSE_BEST, CHOSE_NOTHING)


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
