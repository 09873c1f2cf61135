"""A GPU measured in ten minutes: python -m benchmarks.gpu

The stages on the demo, without DVC; verify; a training killed and continued; training against
a textbook loop and TRL with and without Liger kernels; generation against transformers; the memory
of a large vocabulary. Every contestant is a process with a time limit of its own; one that fails,
or is not installed, is a line that says so. TRL and Liger: pip install trl liger-kernel.
`--device cpu --small` tries the command itself in two minutes, with shapes that say nothing.
"""

import argparse
import json
import operator
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.gpu import contestants
from benchmarks.gpu.contestants import LIGER, NO_GRAPH, OURS, PLAIN, STATIC, TEXTBOOK, TRL
from benchmarks.gpu.pipeline import Pipeline

SMALL: dict[str, Any] = {
    "base_steps": 20,
    "epochs": 1,
    "max_train_examples": 320,
    "eval_interval": 0,
    "sample_prompts": 0,
    "exact_match_max_tokens": 2,
    "warmup_iterations": 2,
    "resume_interval": 0.2,
}
"""Of the pipeline."""


def arguments(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shapes", nargs="+", default=["135M", "1.3B"], help="of the training")
    parser.add_argument("--steps", type=int, default=8, help="of each training")
    parser.add_argument("--limit", type=float, default=75, help="seconds of each contestant")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--small", action="store_true", help="tiny shapes: tries the command")
    args = parser.parse_args(given)
    if args.small:
        args.shapes, args.steps = ["0.5M"], 4
    return args


def main() -> None:
    args = arguments(sys.argv[1:])
    command = " ".join(["python -m benchmarks.gpu", *sys.argv[1:]])
    title = "A GPU" if args.device == "cuda" else "A GPU's measurement, tried on a CPU"
    with results.section(title, command):
        peak = measured("matmul", args)
        if isinstance(peak, str):
            sys.exit(f"no {args.device}: {peak}")
        print(f"{peak['card']}; a bf16 product reaches {peak['flops'] / 1e12:.3g} TFLOP/s")
        for part in args.parts:
            PARTS[part](args, peak)


def measured(job: str, args: argparse.Namespace, **asked: Any) -> dict[str, Any] | str:
    """A contestant's figures, or why there are none."""
    order = json.dumps({"job": job, "device": args.device, **asked})
    process = subprocess.Popen(
        [sys.executable, "-m", contestants.__name__, order],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, errors = process.communicate(timeout=args.limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"not done in {args.limit:g} s"
    if process.returncode:
        return (errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1][:100]
    figures: dict[str, Any] = json.loads(said.splitlines()[-1])
    return figures


def pipeline(args: argparse.Namespace, peak: dict[str, Any]) -> None:
    print("\nThe demo, stage by stage, in processes of their own")
    settings = SMALL if args.small else {"base_steps": 0, "resume_interval": 2.0}
    with tempfile.TemporaryDirectory() as folder:
        try:
            copy = Pipeline(Path(folder), args.device, 4 * args.limit, **settings)
            for line in copy.measure():
                print(f"  {line}", flush=True)
        except subprocess.TimeoutExpired:
            print(f"  not done in {4 * args.limit:g} s")
        except RuntimeError as error:
            print(f"  failed: {error}")


def training(args: argparse.Namespace, peak: dict[str, Any]) -> None:
    for shape in args.shapes:
        print(
            f"\n{shape} parameters, 32 examples a step, bf16, dropout 0: medians of "
            f"{args.steps - contestants.WARM_UP} steps\n"
            f"  {'':<30}{'tok/s':>9}{'of peak':>9}{'memory':>10}{'ready in':>10}   loss"
        )
        for who in (*OURS, TEXTBOOK, TRL, LIGER):
            found = measured("training", args, who=who, shape=shape, steps=args.steps)
            if isinstance(found, str):
                print(f"  {who:<30}{found}", flush=True)
                continue
            speed = found["tokens a second"]
            share = speed * found["flops a token"] / peak["flops"]
            print(
                f"  {who:<30}{speed:>9,.0f}{share:>9.1%}{found['peak'] / 1e9:>7.2f} GB"
                f"{found['until steady']:>8.1f} s   {found['loss']:.3f}  {found['note']}",
                flush=True,
            )


def generation(args: argparse.Namespace, peak: dict[str, Any]) -> None:
    counts, new = ((2,), 4) if args.small else ((64, 512), 64)
    shape = args.shapes[0]
    print(f"\nGreedy generation, {shape} parameters, {new} new tokens a prompt of about 100")
    for prompts in counts:
        first: list[list[int]] = []
        for who in ("ours", NO_GRAPH, STATIC):
            found = measured("generation", args, who=who, shape=shape, prompts=prompts, new=new)
            if isinstance(found, str):
                said = found
            else:
                first = first or found["replies"]
                same = sum(map(operator.eq, first, found["replies"]))
                said = f"{found['tokens a second']:>9,.0f} tok/s, {same} replies alike"
            print(f"  {prompts:>4} prompts, {who:<28}{said}", flush=True)


def vocabulary(args: argparse.Namespace, peak: dict[str, Any]) -> None:
    positions, width, entries = (512, 16, 152_064) if args.small else (16_384, 2048, 152_064)
    print(f"\nLoss and gradient of {positions:,} tokens over {entries:,} entries, width {width:,}")
    for who in ("ours", PLAIN, "Liger"):
        found = measured(
            "vocabulary", args, who=who, positions=positions, width=width, entries=entries
        )
        if isinstance(found, str):
            print(f"  {who:<30}{found}", flush=True)
        else:
            took = f"{found['seconds']:.3f} s, {found['bytes'] / 1e9:.2f} GB"
            print(f"  {who:<30}{took} beyond weights and gradients", flush=True)


PARTS = {
    "pipeline": pipeline,
    "training": training,
    "generation": generation,
    "vocabulary": vocabulary,
}


if __name__ == "__main__":
    main()
