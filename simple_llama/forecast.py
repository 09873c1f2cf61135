"""What a run will do, in numbers: the last part of `simple-llama check`.

The data go through prepare and tokenize as they will, into a temporary folder: of a large file the
first rows only. Nothing is trained. Time is rough; train measures it, and memory, before its first
step.
"""

import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from simple_llama.data.encoding import tokenize
from simple_llama.data.preparation import prepare
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.rows import Row
from simple_llama.data.tokens import Tokens
from simple_llama.errors import InputError
from simple_llama.files import read_json
from simple_llama.inspection.selection import Inspection, ShownExample, shown_examples
from simple_llama.inspection.terminal import render
from simple_llama.model.config import ModelConfig
from simple_llama.model.device import uses_bf16
from simple_llama.pages.numbers import epochs as in_epochs
from simple_llama.params.prepare import PrepareParams
from simple_llama.params.reading import Params
from simple_llama.params.tokenize import TokenizeParams
from simple_llama.params.train import TrainParams
from simple_llama.training.fine_tuning import MODEL
from simple_llama.training.loop import plan_training
from simple_llama.training.requirements import Requirements

ROWS = 20_000
"""Of the data at most: some seconds."""
SHORT = 100
"""Tokens of the example that is shown, where one has so few."""
SHARE_OF_PEAK = 0.4
"""Of what a device does in large products alone, as much as trainings reached in
benchmarks/RESULTS.md."""
MEASURED_SECONDS = 0.3


def forecast(
    params: Params, wanted: Requirements, ranks: int, here: torch.device | None
) -> list[str]:
    """Lines for a person. here: the device that will compute; None: one that is only imagined.

    Raises InputError where prepare, tokenize, the plan or this device's memory would stop it.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            data = _read(params, wanted.tokenizer, Path(folder))
        except _NotAll as error:
            return [f"note: of the first {ROWS:,} rows of the data: {error}"]
        return [
            *_counts(data, params),
            *_memory(data, params, wanted, ranks, planned=here is None),
            *([] if here is None else _time(data, params, wanted, here)),
            *_places(params),
            *_shown(data),
        ]


class _NotAll(Exception):
    """The first rows alone would stop prepare or tokenize; all of them may not."""


@dataclass(frozen=True, kw_only=True)
class _Data:
    train: Tokens
    val: Tokens
    whole: bool
    """Whether these are all rows."""
    example: ShownExample
    prompt_format: str


def _read(params: Params, tokenizer: ChatTokenizer, folder: Path) -> _Data:
    prepared, tokens = folder / "prepared", folder / "tokens"
    seen = _FirstRows()
    settings = params.section(TokenizeParams)
    try:
        prepare(params.section(PrepareParams), prepared, seen)
        tokenize(settings, tokenizer, prepared, tokens)
    except InputError as error:
        # the folder goes when this returns
        said = str(error)
        if str(folder) in said:
            said = said.replace(f"{folder}/", "data/") + " (which `dvc repro` writes)"
        raise (InputError if seen.whole else _NotAll)(said) from None
    train = Tokens.read(tokens / "train.safetensors")
    short = np.flatnonzero(train.lengths <= SHORT)
    index = int(short[0]) if len(short) else int(np.argmin(train.lengths))
    [example] = shown_examples("train", train, range(index, index + 1), prepared, tokens)
    return _Data(
        train=train,
        val=Tokens.read(tokens / "val.safetensors"),
        whole=seen.whole,
        example=example,
        prompt_format=str(read_json(tokens / "tokenizer/tokenizer_config.json")["prompt_format"]),
    )


class _FirstRows:
    """Rows as long as they are few."""

    whole = True

    def __call__(self, rows: Iterable[Row]) -> Iterator[Row]:
        for number, row in enumerate(rows):
            if number == ROWS:
                self.whole = False
                return
            yield row


def _counts(data: _Data, params: Params) -> Iterator[str]:
    settings = params.section(TrainParams)
    plan = plan_training(len(data.train), settings)
    least = "" if data.whole else "at least "
    used = data.train.lengths[: plan.num_examples]
    yield (
        f"data: {least}{len(data.train):,} examples to train on, {len(data.val):,} to validate; "
        f"{int(np.median(data.train.lengths)):,} tokens each in the middle, "
        f"{int(data.train.lengths.max()):,} at most (max_seq_len {settings.max_seq_len:,})"
    )
    if not data.whole:
        yield f"  of the first {ROWS:,} rows; the rest is not counted here"
    share = np.count_nonzero(data.train.mask) / len(data.train.mask)
    yield (
        f"training: {least}{plan.steps:,} steps of {settings.examples_per_step:,} examples, "
        f"{in_epochs(plan.steps / plan.steps_per_epoch)} of {plan.num_examples:,} examples and "
        f"{int(used.sum()):,} tokens, "
        f"{share:.0%} of them supervised (supervise: {params.section(TokenizeParams).supervise})"
    )


def _memory(
    data: _Data, params: Params, wanted: Requirements, ranks: int, *, planned: bool
) -> Iterator[str]:
    """planned: say where it cannot fit, too, instead of raising what train would."""
    estimate = wanted.estimate(params.section(TrainParams), data.train, ranks)
    note = "" if estimate.fits else "note: it may not fit: "
    if planned and estimate.exceeds:
        note = "note: it cannot fit, train would refuse it: "
    elif not planned:
        estimate.check()
    yield f"memory: {note}{estimate.verdict()}"
    yield from estimate.table()


def _time(data: _Data, params: Params, wanted: Requirements, device: torch.device) -> Iterator[str]:
    settings, shape = params.section(TrainParams), wanted.shape
    plan = plan_training(len(data.train), settings)
    epochs = plan.steps / plan.steps_per_epoch
    passes = 2 if settings.lora_rank else 3
    passes += settings.activation_checkpointing == "blocks"
    tokens = passes * epochs * int(data.train.lengths[: plan.num_examples].sum())
    tokens += max(1.0, epochs) * int(data.val.lengths.sum())  # validated at epoch ends
    speed = _products(device, shape.config, settings)
    seconds = 2 * shape.total * tokens / (SHARE_OF_PEAK * speed)
    yield (
        f"time: some {_duration(seconds)} at {SHARE_OF_PEAK:.0%} of the {speed / 1e9:,.0f} GFLOP/s "
        f"that products of this size reach on {device}; a small model takes several times as long"
    )


def _products(device: torch.device, config: ModelConfig, params: TrainParams) -> float:
    """Floating-point operations a second in products of an MLP's shape."""
    width, inner = config.hidden_size, config.intermediate_size
    rows = 2048 if params.micro_batch_tokens == "auto" else min(params.micro_batch_tokens, 2048)
    dtype = torch.bfloat16 if uses_bf16(device, params.precision) else torch.float32
    a = torch.ones(rows, width, device=device, dtype=dtype)
    b = torch.ones(width, inner, device=device, dtype=dtype)
    float((a @ b)[0, 0])  # the first takes longer
    begin, done = time.perf_counter(), 0
    while (taken := time.perf_counter() - begin) < MEASURED_SECONDS:
        float((a @ b)[0, 0])  # waits for a GPU
        done += 1
    return 2.0 * rows * width * inner * done / taken


def _duration(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{max(seconds, 1):.0f} seconds"


def _places(params: Params) -> Iterator[str]:
    settings = params.section(TrainParams)
    kept = (
        f", every {settings.ckpt_epochs} epochs models/checkpoints/" if settings.ckpt_epochs else ""
    )
    adapter = ", the adapter models/adapter/" if settings.lora_rank else ""
    yield f"kept: the best model {MODEL}/{kept}{adapter}; what a killed run continues from .resume/"


def _shown(data: _Data) -> Iterator[str]:
    yield "what will be trained, for example:"
    inspection = Inspection([data.example], {}, [], data.prompt_format, [])
    yield from (
        f"  {line}".rstrip() for line in render(inspection, width=98, colour=False).splitlines()
    )
