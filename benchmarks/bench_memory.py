"""Predicted against measured peak memory of trainings: python -m benchmarks.bench_memory

Models of random weights on random examples, each in a process of its own, some steps. What was
predicted is held against the tensors of a step, as PyTorch counts them. Beside it what the process
took, since a tiny training loaded the kernels' code: malloc keeps more of a CPU's memory than
tensors are.
"""

import argparse
import gc
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import workload
from benchmarks.results import section
from simple_llama.data.tokens import Tokens
from simple_llama.model.config import ModelConfig
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import pick_device, uses_bf16
from simple_llama.model.quantisation import held_bytes
from simple_llama.params.reading import Params
from simple_llama.params.train import TrainParams
from simple_llama.training.distributed import SINGLE_PROCESS
from simple_llama.training.fine_tuning import fine_tuning_method
from simple_llama.training.loop import Trainer
from simple_llama.training.memory import Shape, footprint, loads_of
from simple_llama.training.state import TrainingData

WANTED = 0.1
"""Of what was measured: how far the prediction may be off."""
STEPS = 2
"""In the second AdamW's moments are there."""
MIDDLE = replace(
    workload.SHAPES["94.4M"],
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=64,
)
SHAPES = {"9.0M": workload.SHAPES["9.0M"], "29.9M": MIDDLE, "94.4M": workload.SHAPES["94.4M"]}
BLOCKS: dict[str, Any] = {"activation_checkpointing": "blocks"}
HEADER = (
    f"{'GB':<86}{'predicted':>9}{'tensors':>9}{'error':>8}{'10%':>5}{'process':>9}{'s/step':>8}"
)
LORA: dict[str, Any] = {"lora_rank": 16, "lora_targets": "all-linear"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training."""

    shape: str
    settings: dict[str, Any] = field(default_factory=dict)
    """Others than params.yaml's."""
    tokens: int = 2048
    """Of a micro-batch."""
    longest: int = 256
    """Tokens of an example; the shortest has a quarter."""
    micro_batches: int = 2
    """Of a step."""
    vocabulary: int = 0
    """0: the shape's."""

    @property
    def config(self) -> ModelConfig:
        config = SHAPES[self.shape]
        return replace(config, vocab_size=self.vocabulary) if self.vocabulary else config

    @property
    def name(self) -> str:
        told = [f"{key}: {value}" for key, value in self.settings.items() if key != "lora_targets"]
        if self.vocabulary:
            told.append(f"vocabulary {self.vocabulary:,}")
        if self.longest != Case.longest:
            told.append(f"examples up to {self.longest:,}")
        return ", ".join([f"{self.shape:>5} {self.tokens:>6,} tokens", *told])


def case(shape: str, precision: str = "bf16", **settings: Any) -> Case:
    own = {name: settings.pop(name) for name in list(settings) if name in Case.__dataclass_fields__}
    return Case(shape=shape, settings={"precision": precision, **settings}, **own)


CASES = [
    case("9.0M", "fp32"),
    case("9.0M"),
    case("9.0M", tokens=8192, micro_batches=1),
    case("9.0M", tokens=8192, longest=2048, micro_batches=1),
    case("9.0M", packing=False),
    case("9.0M", dropout=0.1),
    case("9.0M", vocabulary=65_536, tokens=4096),
    case("29.9M", "fp32"),
    case("29.9M", "fp32", micro_batches=1, tokens=512),
    case("29.9M", **BLOCKS),
    case("29.9M", **LORA),
    case("29.9M", weights="bf16"),
    case("94.4M", "fp32", tokens=1024, micro_batches=1),
    case("94.4M", tokens=1024, micro_batches=1),
    case("94.4M", tokens=1024, micro_batches=1, **BLOCKS),
    case("94.4M", tokens=1024, micro_batches=1, optimizer_state="bf16"),
    case("94.4M", tokens=1024, micro_batches=1, optimizer_state="8bit"),
    case("94.4M", tokens=1024, micro_batches=1, weights="bf16", optimizer_state="8bit", **BLOCKS),
    case("94.4M", tokens=1024, micro_batches=1, **LORA),
    case("94.4M", tokens=1024, micro_batches=1, **LORA, **BLOCKS),
    case("94.4M", tokens=1024, micro_batches=1, **LORA, lora_base="nf4"),
    case("94.4M", tokens=1024, micro_batches=1, **LORA, lora_base="nf4", **BLOCKS),
]


class Silent:
    """An observer that keeps nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


@dataclass(frozen=True)
class Measured:
    """Bytes, and what time the settings take."""

    predicted: int
    tensors: int
    """At most at once, as PyTorch's allocator counts them."""
    process: int
    """What the process took besides what it had before; 0 on a GPU."""
    seconds: float
    """For a step."""

    @property
    def error(self) -> float:
        """Of the prediction."""
        return self.predicted / self.tensors - 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_memory", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", type=int, metavar="N", help="measure one case, print JSON")
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(vars(measure(CASES[arguments.one], arguments.device))))
        return
    command = ["python", "-m", "benchmarks.bench_memory", *sys.argv[1:]]
    with section("Memory, predicted and measured", " ".join(command)):
        print(HEADER)
        results = [alone(number, one, arguments.device) for number, one in enumerate(CASES)]
        off = [abs(one.error) for one in results]
        within = sum(one <= WANTED for one in off)
        print(
            f"{within} of {len(off)} within {WANTED:.0%} of their tensors; {max(off):.1%} at most"
        )
        if all(one.process for one in results):
            more = sorted(one.process / one.tensors - 1 for one in results)
            print(
                f"a process took {more[0]:.0%} to {more[-1]:.0%} more than its tensors, "
                f"{statistics.median(more):.0%} in the middle: what malloc keeps"
            )


def alone(number: int, one: Case, device: str) -> Measured:
    """A case in a process of its own, and its line."""
    command = [sys.executable, "-m", "benchmarks.bench_memory", "--device", device]
    done = subprocess.run([*command, "--one", str(number)], capture_output=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.decode())
    result = Measured(**json.loads(done.stdout.splitlines()[-1]))
    verdict = "yes" if abs(result.error) <= WANTED else "NO"
    print(
        f"{one.name:<86}{result.predicted / 1e9:9.3f}{result.tensors / 1e9:9.3f}"
        f"{result.error:+8.1%}{verdict:>5}{result.process / 1e9:9.3f}{result.seconds:8.2f}",
        flush=True,
    )
    return result


def measure(one: Case, name: str) -> Measured:
    """Train it here."""
    device = pick_device(name)
    tiny = replace(one, tokens=256, longest=128, micro_batches=1)
    _, trainer = prepared(workload.SHAPES["0.5M"], tiny, device)
    for _ in range(STEPS):
        trainer.step()
    del trainer
    gc.collect()
    before = reset_peak(device)
    predicted, trainer = prepared(one.config, one, device)
    reset_peak(device)  # whole models are made in float32 here, unlike by load_model
    for _ in range(STEPS):
        started = time.perf_counter()
        trainer.step()
        seconds = time.perf_counter() - started
    most = peak(device) - before
    if device.type == "cuda":
        return Measured(predicted, most, 0, seconds)
    return Measured(predicted, held(trainer) + counted(trainer.step), most, seconds)


def prepared(config: ModelConfig, one: Case, device: torch.device) -> tuple[int, Trainer]:
    """What its training will take at most, and it."""
    settings = replace(
        Params(Path(__file__).parents[1] / "params.yaml").section(TrainParams),
        **{"dropout": 0.0, **one.settings},
        batch_size=int(one.micro_batches * one.tokens * 0.95 / (0.625 * one.longest)),
        micro_batch_tokens=one.tokens,
        max_seq_len=one.longest,
        eval_interval=0,
        sample_prompts=0,
        warmup_iterations=0,
        max_lr=1e-4,
    )
    with torch.device(device):
        model = Decoder(config, dropout=settings.dropout)
    if device.type == "cpu":
        model.init_weights(0)
    for parameter in model.parameters():  # such as bfloat16 holds, like most checkpoints
        parameter.data.copy_(parameter.data.bfloat16())
    fine_tuning_method(settings, "random", Path("none")).prepare(model, settings)
    random = np.random.default_rng(0)
    lengths = random.integers(one.longest // 4, one.longest + 1, settings.batch_size)
    lengths[0] = one.longest
    examples = [
        (random.integers(0, config.vocab_size, length), np.arange(length) >= length // 2)
        for length in lengths
    ]
    data = TrainingData(
        train=Tokens.from_examples(examples),
        val=Tokens.from_examples(examples[:1]),
        pad_id=0,
        stop_ids=[],
    )
    trainer = Trainer(model, data, settings, Silent(), SINGLE_PROCESS)
    model.train()
    gradients = trainer.gradients
    predicted = footprint(
        Shape(config, exact_in_bf16=True),
        settings,
        loads_of(gradients.batches(np.arange(len(examples)))),
        device.type,
        half=uses_bf16(device, settings.precision),
        packed=gradients.packing,
    )
    return predicted.peak, trainer


def held(trainer: Trainer) -> int:
    """Bytes between two steps: weights and moments."""
    moments = (tensor for state in trainer.optimizer.state.values() for tensor in state.values())
    return held_bytes(trainer.model) + sum(tensor.nbytes for tensor in moments)


def counted(work: Callable[[], None]) -> int:
    """Bytes of tensors that it allocates, at most at once."""
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        work()
    assert profile.kineto_results is not None
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    sizes: list[int] = [event.nbytes() for event in events]
    return max(itertools.accumulate(sizes))


def reset_peak(device: torch.device) -> int:
    """Count the peak from now on; what is held already."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _status("VmRSS")


def peak(device: torch.device) -> int:
    """Bytes at most since then, what was held before included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(name: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
