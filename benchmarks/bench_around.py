"""What a run costs beside its training: python -m benchmarks.bench_around

One table, in wall time, each row with what dominates it: `dvc repro` with nothing to do, each
stage's start, the way to the first optimizer step, the writing of models and resume states.
Medians of REPEATS, with the range. The pipeline is a copy of the tests' small project. What
tracking costs a step: python -m benchmarks.bench_tracking
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import results, workload
from simple_llama.model.folder import save_model
from simple_llama.params.reading import Params
from simple_llama.params.train import TrainParams
from simple_llama.training.optimizer import AdamW
from simple_llama.training.resume import MAX_SAVING_SHARE, ResumeFolder
from tests.support.project import Project

STAGES = ("prepare", "tokenize", "baseline", "train", "evaluate")
HEAVY = ("numpy", "tokenizers", "torch", "mlflow", "dvc")
REPEATS = 5
FIRST_STEP = """
from simple_llama.training.recorder import Recorder

def on_optimizer_step(self, record):
    raise SystemExit

Recorder.on_optimizer_step = on_optimizer_step
import stages.train
stages.train.main()
"""
"""Train as the stage does, but leave once the first step is done."""


def main() -> None:
    with results.section("Around the work", "python -m benchmarks.bench_around"):
        with tempfile.TemporaryDirectory() as folder:
            project = Project.make(Path(folder))
            project.run("dvc", "repro")
            row("a Python process", run(project, "-c", "pass"), "the interpreter")
            idle = "importing dvc, comparing sizes and times of all files"
            row("dvc repro, nothing to do", lambda: ignore(project.run("dvc", "repro")), idle)
            for stage in STAGES:
                code = f"import stages.{stage}"
                row(f"start of {stage}", run(project, "-c", code), f"importing {heavy(code)}")
            project.set(seed=1)
            row(
                "train, to its first step",
                run(project, "-c", FIRST_STEP),
                "importing torch and mlflow, the preflight",
            )
        with tempfile.TemporaryDirectory() as folder:
            writing(Path(folder))


def writing(folder: Path) -> None:
    """Of the benchmarks' model of 9.0M parameters, and of AdamW's state of it."""
    model = workload.new_model(0.0)
    optimizer = AdamW(model, Params().section(TrainParams))
    optimizer.init_state()
    tensors = {name: weight.detach() for name, weight in model.named_parameters()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    row(
        "writing a model, 9.0M",
        lambda: save_model(model, folder / "model"),
        f"{size / 1e6:.0f} MB, and fsync",
    )
    for name, state in optimizer.state.items():
        tensors |= {f"{key}.{name}": value for key, value in state.items()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    resume = ResumeFolder(folder / "state", interval=0)
    resume.folder.mkdir()
    row(
        "writing its resume state",
        lambda: resume.save(tensors, {}, step=1, best=0),
        f"{size / 1e6:.0f} MB, SHA-256 and fsync; at most {MAX_SAVING_SHARE:.0%} of a training",
    )


def row(name: str, work: Callable[[], None], dominant: str) -> None:
    """Do the work REPEATS times and print how long it took."""
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    spread = f"({min(seconds):.2f} to {max(seconds):.2f})"
    print(f"{name:<26}{statistics.median(seconds):>6.2f} s {spread:>15}  {dominant}", flush=True)


def run(project: Project, *arguments: str) -> Callable[[], None]:
    """Python with these arguments in the project."""
    return lambda: ignore(project.run(sys.executable, *arguments))


def ignore(_: str) -> None:
    """What a command said."""


def heavy(code: str) -> str:
    """The heavy packages that this imports."""
    code = f"{code}, sys; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return ", ".join(done.stdout.split()) or "our own modules"


if __name__ == "__main__":
    main()
