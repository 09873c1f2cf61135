"""What tracking costs: python -m benchmarks.bench_tracking

Prints the time inside Run.log per call, the processor time of the sending thread, how long a run
takes to start and to finish, and a loop's time with and without tracking, A B A B, with spread.
Everything happens in a temporary folder.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from benchmarks import results
from simple_llama import tracking
from simple_llama.params.tracking import TrackingParams

STEPS = 1000
METRICS = ("train/loss", "train/learning_rate", "train/gradient_norm", "train/tokens_per_second")
SETTINGS = TrackingParams(mlflow_experiment="benchmark", log_checkpoint=False)
DATASET = tracking.Dataset(name="none", digest="0", source="none", counts={})

Log = Callable[[int], None]


def run() -> AbstractContextManager[tracking.Run]:
    return tracking.training_run(SETTINGS, params={"max_lr": 1e-3}, tags={}, dataset=DATASET)


def loop(log: Log) -> float:
    """Seconds for STEPS steps of about 5 ms on one core, each followed by `log`."""
    weight = torch.randn(512, 512)
    start = time.perf_counter()
    for step in range(STEPS):
        for _ in range(4):
            torch.mm(weight, weight)
        log(step)
    return time.perf_counter() - start


def tracked_loop() -> tuple[float, list[float], float]:
    """Seconds of a tracked loop, of each call in it, and of the sending thread's processor."""
    costs: list[float] = []
    with run() as tracked:
        assert tracked.id  # waits for the import and the database: they belong to the start
        before = tracked.writer_cpu_seconds

        def log(step: int) -> None:
            start = time.perf_counter()
            tracked.log(step, dict.fromkeys(METRICS, 0.5))
            costs.append(time.perf_counter() - start)

        seconds = loop(log)
        tracked.id  # noqa: B018  (waits until all is sent)
        return seconds, costs, tracked.writer_cpu_seconds - before


def main() -> None:
    torch.set_num_threads(1)
    with results.section("Tracking", "python -m benchmarks.bench_tracking"):
        measure()


def measure() -> None:
    home = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, ".dvc").mkdir()
        os.chdir(folder)
        measure_start("first run (import, new database)")
        measure_start("second run")
        plain, tracked, calls, cpu = [], [], [], []
        for _ in range(5):
            plain.append(loop(lambda step: None))
            seconds, costs, thread = tracked_loop()
            tracked.append(seconds)
            calls.extend(costs)
            cpu.append(thread)
        report(plain, tracked, calls, cpu)
        os.chdir(home)


def measure_start(name: str) -> None:
    start = time.perf_counter()
    with run() as tracked:
        entered = time.perf_counter()
        assert tracked.id
        ready = time.perf_counter()
    ended = time.perf_counter()
    print(
        f"{name}: {entered - start:.3f} s until the training may begin, "
        f"{ready - start:.2f} s until the store has it, {ended - ready:.3f} s to finish"
    )


def report(plain: list[float], tracked: list[float], calls: list[float], cpu: list[float]) -> None:
    calls = sorted(calls)
    quantiles = {q: calls[int(q * (len(calls) - 1))] * 1e6 for q in (0.5, 0.99, 1.0)}
    print(
        f"Run.log of {len(METRICS)} metrics: mean {statistics.mean(calls) * 1e6:.1f} µs, "
        + ", ".join(f"{q:.0%} {value:.1f} µs" for q, value in quantiles.items())
    )
    print(f"sending thread: {statistics.median(cpu) / STEPS * 1e6:.0f} µs of processor a step")
    step = [seconds / STEPS * 1e3 for seconds in plain]
    ratios = [with_ / without for with_, without in zip(tracked, plain)]
    print(
        f"a step of {statistics.median(step):.2f} ms: with / without tracking "
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}); "
        f"without, between repetitions {min(plain) / max(plain):.3f}"
    )


if __name__ == "__main__":
    main()
