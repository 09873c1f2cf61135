"""How long each stage takes to start: python -m benchmarks.bench_startup

Imports of a stage in a fresh process, less the interpreter's own start: median of REPEATS, with the
spread, and which of the heavy packages it has imported.
"""

import statistics
import subprocess
import sys
import time

from benchmarks import results

STAGES = ("prepare", "tokenize", "train", "evaluate")
HEAVY = ("tokenizers", "torch", "mlflow", "dvc")
REPEATS = 7


def seconds(code: str) -> list[float]:
    """Wall time of a Python process that runs this, each time."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - start)
    return times


def imported(stage: str) -> list[str]:
    code = f"import stages.{stage}, sys; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.split()


def main() -> None:
    with results.section("Start of a stage", "python -m benchmarks.bench_startup"):
        bare = statistics.median(seconds("pass"))
        print(f"the interpreter alone: {bare:.2f} s")
        for stage in STAGES:
            times = [value - bare for value in seconds(f"import stages.{stage}")]
            print(
                f"{stage:<9} {statistics.median(times):.2f} s ({min(times):.2f} to "
                f"{max(times):.2f})  imports {', '.join(imported(stage)) or 'nothing heavy'}"
            )


if __name__ == "__main__":
    main()
