"""Training throughput: python -m benchmarks.bench_training

Ours, a textbook loop and TRL's SFTTrainer train the same steps from the same weights, in one
process, in turns; then once each in a process of its own, for its memory. TRL is left out where it
is not installed (pip install -e .[bench]).
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import results, textbook, trl_peer, workload
from benchmarks.workload import STEP_EXAMPLES, Step
from simple_llama.params import Params, TrainParams
from simple_llama.training import preflight
from simple_llama.training.distributed import ALONE
from simple_llama.training.loop import Trainer
from simple_llama.training.observer import StepRecord, TrainingData

COMMAND = "python -m benchmarks.bench_training"
MICRO_BATCH_TOKENS = 4096
WARM_UP = 1
"""Steps of each turn that are not counted."""
Contestant = Callable[[int], list[Step]]
TEXTBOOK, TRL = "textbook", "TRL"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="a turn")
    parser.add_argument("--compiled", action="store_true", help="ours with torch.compile as well")
    parser.add_argument("--trl", help="one of trl_peer.SETTINGS; without it, each is tried first")
    parser.add_argument("--memory-of", help="print this contestant's peak memory in bytes, no more")
    parser.add_argument("--dropout", type=float, default=0.0)
    args = parser.parse_args()
    if args.memory_of:
        contestants(args.dropout, args.trl, compiled=True)[args.memory_of](args.steps)
        print(peak_memory())
        return
    with results.section("Training throughput", COMMAND):
        print(
            f"9.0M parameters, {workload.data_name()}, {STEP_EXAMPLES} examples a step; real tokens"
            f" per second, medians over {args.rounds} rounds of {args.steps - WARM_UP} steps"
        )
        peak = matmul_peak()
        settings = (args.trl or fastest_trl(args.steps)) if results.installed("trl") else None
        if settings is None:
            print("TRL is not installed: left out")
        for dropout in (0.1, 0.0):
            compare(args, dropout, settings, peak)


def contestants(dropout: float, trl: str | None, *, compiled: bool) -> dict[str, Contestant]:
    found: dict[str, Contestant] = {
        "ours": partial(ours, dropout=dropout),
        TEXTBOOK: partial(textbook.train, dropout=dropout),
    }
    if trl:
        found[TRL] = partial(trl_peer.train, **trl_peer.SETTINGS[trl])
    if compiled:
        found["ours, compiled"] = partial(ours, dropout=dropout, enable_compilation=True)
    return found


class Listener:
    """Keeps what each step tells."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def stepped(self, record: StepRecord) -> None:
        self.steps.append(Step(record.tokens, record.seconds, record.loss))

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def ours(count: int, dropout: float, **changes: Any) -> list[Step]:
    tokens = workload.tokens()
    values: dict[str, Any] = {
        "device": "cpu",
        "batch_size": STEP_EXAMPLES,
        "grad_accum_steps": 1,
        "dropout": dropout,
        "epochs": 1,
        "max_steps": count,
        "max_seq_len": 1024,
        "max_lr": 1e-3,
        "lr_schedule": "constant",
        "warmup_iterations": 0,
        "eval_interval": 0,
        "sample_prompts": 0,
        "micro_batch_tokens": MICRO_BATCH_TOKENS,
        **changes,
    }
    params = replace(Params().section(TrainParams), **values)
    data = TrainingData(train=tokens, val=tokens, pad_id=workload.PAD_ID, stop_id=1)
    listener: Any = Listener()
    trainer = Trainer(workload.new_model(dropout), data, params, listener, ALONE)
    trainer.model.train()
    if params.enable_compilation:
        trainer.gradients.compile(trainer.plan.at(0))
    for _ in range(count):
        trainer.step()
    measured: list[Step] = listener.steps
    return measured


def matmul_peak() -> float:
    """FLOP/s of a bfloat16 matrix product with all threads: the best of several sizes and tries."""
    best = 0.0
    for size in (1024, 2048):
        a = torch.randn(size, size, dtype=torch.bfloat16)
        for _ in range(8):
            begin = time.perf_counter()
            a @ a
            best = max(best, 2 * size**3 / (time.perf_counter() - begin))
    return best


def fastest_trl(steps: int) -> str:
    """The settings with which TRL trains fastest; prints all."""
    print("\nTRL's settings, one turn each:")
    speeds = {}
    for name, settings in trl_peer.SETTINGS.items():
        try:
            speeds[name] = speed(trl_peer.train(steps, **settings))
            print(f"  {name:<26}{speeds[name]:>8,.0f} tok/s", flush=True)
        except Exception as error:  # whatever a peer may raise with these settings
            print(f"  {name:<26}failed: {type(error).__name__}")
    return max((n for n in speeds if "by length" not in n), key=speeds.__getitem__)


def speed(steps: list[Step]) -> float:
    return statistics.median(step.speed for step in steps[WARM_UP:])


def compare(args: argparse.Namespace, dropout: float, trl: str | None, peak: float) -> None:
    """A B C A B C ...: a table of medians, ratios with their range, memory and losses."""
    racers = contestants(dropout, trl, compiled=args.compiled)
    speeds: dict[str, list[float]] = {name: [] for name in racers}
    losses: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        for name, train in racers.items():
            measured = train(args.steps)
            speeds[name].append(speed(measured))
            losses[name] = [step.loss for step in measured]
    print(f"\ndropout {dropout}" + (f"; TRL ({trl}) without dropout" if trl and dropout else ""))
    print(f"  {'':<16}{'tok/s':>7}{'ours / it':>11}{'(range)':>15}{'memory':>9}{'':>3}losses")
    for name, values in speeds.items():
        ratios = [mine / theirs for mine, theirs in zip(speeds["ours"], values, strict=True)]
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(
            f"  {name:<16}{statistics.median(values):>7,.0f}{statistics.median(ratios):>11.2f}"
            f"{spread:>15}{memory(name, dropout, trl, args.steps) / 1e9:>6.2f} GB   "
            + " ".join(f"{loss:.3f}" for loss in losses[name]),
            flush=True,
        )
    [examples] = workload.steps(1)
    needed = workload.flops(examples) / int(workload.tokens().lengths[examples].sum())
    achieved = needed * statistics.median(speeds["ours"])
    print(
        f"  ours: {achieved / 1e12:.3f} TFLOP/s in products that the model needs, "
        f"{achieved / peak:.0%} of the {peak / 1e12:.2f} of a bf16 product"
    )


def peak_memory() -> int:
    """Bytes resident in this process at most. What getrusage says counts the parent's too."""
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return preflight.peak_memory(torch.device("cpu"))


def memory(name: str, dropout: float, trl: str | None, steps: int) -> int:
    """Bytes at most in a process that trains so alone."""
    command = [sys.executable, "-m", "benchmarks.bench_training", "--memory-of", name]
    command += ["--dropout", str(dropout), "--steps", str(steps)]
    command += ["--trl", trl] if trl else []
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
