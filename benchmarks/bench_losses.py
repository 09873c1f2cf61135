"""What rounding costs in loss: python -m benchmarks.bench_losses

One bfloat16 checkpoint, drawn at random, is trained with all weights by each setting, on the same
batches. Then the checkpoint that the first of them made is the base of adapters, which are trained
on the next examples. The validation examples are the same for all. What is said of a setting is its
difference from the first; a second seed shows how far apart trainings are that differ in nothing
that matters.
"""

import argparse
import contextlib
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Generator, Tensor

from benchmarks import workload
from benchmarks.bench_settings import Clock, save_base
from benchmarks.results import section
from simple_llama.data.batches import Indices
from simple_llama.data.tokens import Tokens
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import pick_device, uses_bf16
from simple_llama.model.folder import load_model, save_model
from simple_llama.params.reading import Params
from simple_llama.params.train import TrainParams
from simple_llama.training import optimizer
from simple_llama.training.fine_tuning import fine_tuning_method
from simple_llama.training.loop import train
from simple_llama.training.loss import score
from simple_llama.training.state import TrainingData, TrainResult

NEAREST = "weights: bf16, rounded to the nearest"
"""What nobody can choose: without stochastic rounding. It shows what rounding at random is for."""
FULL: dict[str, dict[str, Any]] = {
    "float32 weights and moments": {},
    "float32, another seed": {"seed": 90},
    "optimizer_state: bf16": {"optimizer_state": "bf16"},
    "optimizer_state: 8bit": {"optimizer_state": "8bit"},
    "weights: bf16": {"weights": "bf16"},
    "weights: bf16, optimizer_state: 8bit": {"weights": "bf16", "optimizer_state": "8bit"},
    NEAREST: {"weights": "bf16"},
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora_rank: 16, lora_base: bf16": {"lora_rank": 16},
    "lora_rank: 16, another seed": {"lora_rank": 16, "seed": 90},
    "lora_rank: 16, lora_base: nf4": {"lora_rank": 16, "lora_base": "nf4"},
}
WAYS = FULL | ADAPTERS


@dataclass(frozen=True)
class Job:
    """A training of this benchmark, all but its settings."""

    base: Path
    data: TrainingData
    params: TrainParams

    def run(self, name: str, keep: Path | None = None) -> TrainResult:
        """Train by the settings of this name; keep: where the model is written."""
        params = replace(self.params, **WAYS[name])
        torch.manual_seed(0)
        model = self.load(params)
        fine_tuning_method(params, str(self.base), Path("none")).prepare(model, params)
        rounding = mock.patch.object(optimizer, "stochastic_round_bf16", to_nearest)
        with rounding if name == NEAREST else contextlib.nullcontext():
            result = train(model, self.data, params, Clock())
        if keep is not None:
            save_model(model, keep, dtype=torch.bfloat16)
        return result

    def load(self, params: TrainParams) -> Decoder:
        device = pick_device(params.device)
        compact = params.lora_rank > 0 and uses_bf16(device, params.precision)
        return load_model(self.base, device, compact=compact, nf4=params.lora_base == "nf4")

    def base_loss(self) -> float:
        """On the validation examples."""
        return score(
            self.load(self.params),
            self.data.val,
            np.arange(len(self.data.val)),
            max_tokens=self.params.tokens_at_once,
            pad_id=self.data.pad_id,
            precision=self.params.precision,
        ).mean_loss


def to_nearest(x: Tensor, generator: Generator) -> Tensor:
    return x.bfloat16()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_losses", description=__doc__)
    parser.add_argument("--shape", default="9.0M", choices=workload.SHAPES)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--examples", type=int, default=8, help="of a step")
    parser.add_argument("--validation", type=int, default=256, help="examples, the last ones")
    parser.add_argument("--lr", type=float, default=1e-3, help="max_lr")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    command = " ".join(["python -m benchmarks.bench_losses", *sys.argv[1:]])
    title = f"Loss on {workload.data_name()} by what weights are held in, {arguments.shape}"
    with (
        section(title, command),
        tempfile.TemporaryDirectory() as folder,
    ):
        compare(arguments, Path(folder))


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    params = replace(
        Params(Path(__file__).parents[1] / "params.yaml").section(TrainParams),
        precision="bf16",
        device=arguments.device,
        dropout=0.0,
        lora_dropout=0.0,
        lora_targets="all-linear",
        batch_size=arguments.examples,
        max_steps=arguments.steps,
        warmup_iterations=arguments.steps // 10,
        max_lr=arguments.lr,
        min_lr=arguments.lr / 10,
        max_seq_len=2048,
        eval_interval=0,
        sample_prompts=0,
    )
    print(
        f"{arguments.shape} parameters, computed in bf16, {arguments.steps} steps of "
        f"{arguments.examples} examples, max_lr {arguments.lr:g}; {arguments.validation} examples "
        "validated\n"
    )
    start, trained = folder / "start", folder / "trained"
    save_base(arguments.shape, start)
    count = arguments.steps * arguments.examples
    full = Job(start, training_data(0, count, arguments.validation), params)
    show_head("all weights", full.base_loss())
    first = full.run(next(iter(FULL)), keep=trained)
    show(next(iter(FULL)), first, first)
    for name in list(FULL)[1:]:
        show(name, full.run(name), first)

    adapters = Job(trained, training_data(count, 2 * count, arguments.validation), params)
    show_head("\nadapters on the first of these", adapters.base_loss())
    first = adapters.run(next(iter(ADAPTERS)))
    show(next(iter(ADAPTERS)), first, first)
    for name in list(ADAPTERS)[1:]:
        show(name, adapters.run(name), first)


def training_data(start: int, end: int, validation: int) -> TrainingData:
    """These examples, and the last of all as validation split."""
    everything = workload.tokens()
    left = len(everything) - validation
    return TrainingData(
        train=subset(everything, np.arange(start, end) % left),
        val=subset(everything, np.arange(left, len(everything))),
        pad_id=workload.PAD_ID,
        stop_ids=[1],
    )


def subset(tokens: Tokens, examples: Indices) -> Tokens:
    spans = [slice(tokens.starts[one], tokens.starts[one + 1]) for one in examples]
    return Tokens.from_examples([(tokens.ids[span], tokens.mask[span]) for span in spans])


def show_head(name: str, before: float) -> None:
    print(f"{name:42}  training  validation  difference")
    print(f"{'before':41} {'':9} {before:11.4f}", flush=True)


def show(name: str, result: TrainResult, first: TrainResult) -> None:
    line = f"{name:41} {result.train_loss:9.4f} {result.val_loss:11.4f}"
    line += f" {result.val_loss - first.val_loss:+11.4f}"
    if result.rounded_base_val_loss is not None:
        line += f"  (before: {result.rounded_base_val_loss:.4f})"
    print(line, flush=True)


if __name__ == "__main__":
    main()
