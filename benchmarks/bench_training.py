"""Training throughput: python -m benchmarks.bench_training

Ours, a textbook loop and TRL's SFTTrainer train the same steps from the same weights, in one
process, in turns; then once each in a process of its own, for its memory. TRL is left out where it
is not installed (pip install -e .[bench]). On a GPU ours is packed and compiled:
python -m benchmarks.bench_training --device cuda --shape 1.3B --micro-batch-tokens 8192
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
from benchmarks.workload import SHAPE, STEP_EXAMPLES, Step
from simple_llama.model.config import ModelConfig
from simple_llama.params.reading import Params
from simple_llama.params.train import TrainParams
from simple_llama.training import preflight
from simple_llama.training.distributed import SINGLE_PROCESS
from simple_llama.training.loop import Trainer
from simple_llama.training.state import StepRecord, TrainingData

WARM_UP = 1
"""Steps of each turn that are not counted."""
Contestant = Callable[[int], list[Step]]
TEXTBOOK, TRL = "textbook", "TRL"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="a turn")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=workload.SHAPES, default="9.0M", help="parameters")
    parser.add_argument("--micro-batch-tokens", type=int, default=3072, help="of ours")
    parser.add_argument("--compiled", action="store_true", help="on a CPU, ours compiled as well")
    parser.add_argument("--trl", help="one of trl_peer.SETTINGS; without it, each is tried first")
    parser.add_argument("--memory-of", help="print this contestant's peak memory in bytes, no more")
    parser.add_argument("--dropout", type=float, default=0.0)
    args = parser.parse_args()
    if args.memory_of:
        contestants(args, args.dropout, args.trl)[args.memory_of](args.steps)
        print(peak_memory(args.device))
        return
    on_gpu = args.device == "cuda"
    title = f"Training throughput, {args.shape} on a GPU" if on_gpu else "Training throughput"
    with results.section(title, " ".join(["python -m benchmarks.bench_training", *sys.argv[1:]])):
        if on_gpu:
            print(torch.cuda.get_device_name())
        print(
            f"{args.shape} parameters, {workload.data_name()}, {STEP_EXAMPLES} examples a step; "
            f"real tokens per second, medians over {args.rounds} rounds of "
            f"{args.steps - WARM_UP} steps"
        )
        peak = matmul_peak(args.device)
        settings = (args.trl or fastest_trl(args)) if results.installed("trl") else None
        if settings is None:
            print("TRL is not installed: left out")
        for dropout in (0.1, 0.0):
            compare(args, dropout, settings, peak)


def contestants(args: argparse.Namespace, dropout: float, trl: str | None) -> dict[str, Contestant]:
    shape = workload.SHAPES[args.shape]
    where: dict[str, Any] = {"shape": shape, "device": args.device}
    mine = partial(ours, dropout=dropout, micro_batch_tokens=args.micro_batch_tokens, **where)
    found: dict[str, Contestant] = {}
    if args.device == "cpu":
        found["ours"] = mine
        if args.compiled:
            found["ours, compiled"] = partial(mine, enable_compilation=True)
    else:
        found["ours"] = partial(mine, packing=True, enable_compilation=True)
        found["ours, padded"] = partial(mine, packing=False, enable_compilation=True)
        found["ours, eager"] = partial(mine, packing=True)
    found[TEXTBOOK] = partial(textbook.train, dropout=dropout, **where)
    if trl:
        found[TRL] = partial(trl_peer.train, **where, **trl_peer.SETTINGS[trl])
    return found


class Listener:
    """Keeps what each step tells."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def on_optimizer_step(self, record: StepRecord) -> None:
        self.steps.append(Step(record.tokens, record.seconds, record.loss))

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def ours(
    count: int, dropout: float, shape: ModelConfig = SHAPE, device: str = "cpu", **changes: Any
) -> list[Step]:
    tokens = workload.tokens()
    values: dict[str, Any] = {
        "device": device,
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
        **changes,
    }
    params = replace(Params().section(TrainParams), **values)
    data = TrainingData(train=tokens, val=tokens, pad_id=workload.PAD_ID, stop_ids=[1])
    listener: Any = Listener()
    model = workload.new_model(dropout, shape, device)
    trainer = Trainer(model, data, params, listener, SINGLE_PROCESS)
    if params.enable_compilation is True:
        trainer.gradients.compile(trainer.plan.examples_at(0))
    for _ in range(count):
        trainer.step()
    measured: list[Step] = listener.steps
    return measured


def matmul_peak(device: str) -> float:
    """FLOP/s of a bfloat16 matrix product with all threads: the best of several sizes and tries."""
    best = 0.0
    for size in (1024, 2048) if device == "cpu" else (4096, 8192):
        a = torch.randn(size, size, dtype=torch.bfloat16, device=device)
        for _ in range(8):
            workload.finish(device)
            begin = time.perf_counter()
            a @ a
            workload.finish(device)
            best = max(best, 2 * size**3 / (time.perf_counter() - begin))
    return best


def fastest_trl(args: argparse.Namespace) -> str:
    """The settings with which TRL trains fastest; prints all."""
    print("\nTRL's settings, one turn each:")
    speeds = {}
    for name, settings in trl_peer.SETTINGS.items():
        try:
            steps = trl_peer.train(args.steps, workload.SHAPES[args.shape], args.device, **settings)
            speeds[name] = speed(steps)
            print(f"  {name:<26}{speeds[name]:>8,.0f} tok/s", flush=True)
        except Exception as error:  # whatever a peer may raise with these settings
            print(f"  {name:<26}failed: {type(error).__name__}")
    return max((n for n in speeds if "by length" not in n), key=speeds.__getitem__)


def speed(steps: list[Step]) -> float:
    return statistics.median(step.speed for step in steps[WARM_UP:])


def compare(args: argparse.Namespace, dropout: float, trl: str | None, peak: float) -> None:
    """A B C A B C ...: a table of medians, ratios with their range, memory and losses."""
    racers = contestants(args, dropout, trl)
    speeds: dict[str, list[float]] = {name: [] for name in racers}
    losses: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        for name, train in racers.items():
            measured = train(args.steps)
            speeds[name].append(speed(measured))
            losses[name] = [step.loss for step in measured]
    print(f"\ndropout {dropout}" + (f"; TRL ({trl}) without dropout" if trl and dropout else ""))
    print(f"  {'':<16}{'tok/s':>7}{'ours / it':>11}{'(range)':>16}{'memory':>9}{'':>3}losses")
    for name, values in speeds.items():
        ratios = [mine / theirs for mine, theirs in zip(speeds["ours"], values, strict=True)]
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(
            f"  {name:<16}{statistics.median(values):>7,.0f}{statistics.median(ratios):>11.2f}"
            f" {spread:>15}{memory(name, args, dropout, trl) / 1e9:>6.2f} GB   "
            + " ".join(f"{loss:.3f}" for loss in losses[name]),
            flush=True,
        )
    [examples] = workload.steps(1)
    real = int(workload.tokens().lengths[examples].sum())
    needed = workload.flops(examples, workload.SHAPES[args.shape])
    achieved = needed / real * statistics.median(speeds["ours"])
    print(
        f"  ours: {achieved / 1e12:.3f} TFLOP/s in products that the model needs, "
        f"{achieved / peak:.0%} of the {peak / 1e12:.2f} of a bf16 product"
    )


def peak_memory(device: str) -> int:
    """Bytes at most: of a GPU those of tensors, of a CPU those resident in this process, where
    getrusage would count the parent's too."""
    if device == "cpu":
        with contextlib.suppress(OSError):
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return preflight.peak_memory(torch.device(device))


def memory(name: str, args: argparse.Namespace, dropout: float, trl: str | None) -> int:
    """Bytes at most in a process that trains so alone."""
    command = [sys.executable, "-m", "benchmarks.bench_training", "--memory-of", name]
    command += ["--dropout", str(dropout), "--steps", str(args.steps)]
    command += ["--device", args.device, "--shape", args.shape]
    command += ["--micro-batch-tokens", str(args.micro_batch_tokens)]
    command += ["--compiled"] if args.compiled else []
    command += ["--trl", trl] if trl else []
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
