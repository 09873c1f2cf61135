"""Memory of a token in long examples: python -m benchmarks.bench_long

A training step of one packed example, of a small random model with full attention, with a sliding
window and with soft caps; each in a process of its own. Flat means that nothing grows with the
square of the length.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

from benchmarks import workload
from benchmarks.bench_memory import STEPS, Case, counted, held, peak, prepared, reset_peak
from benchmarks.results import section
from simple_llama.model.device import pick_device

LENGTHS = (2048, 4096, 8192, 16_384, 32_768)
KINDS: dict[str, dict[str, Any]] = {
    "full attention": {},
    "window of 1,024": {"sliding_window": 1024},
    "soft cap": {"attn_logit_softcapping": 50.0},
}
SETTINGS = {"precision": "bf16", "activation_checkpointing": "blocks"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_long", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", nargs=2, metavar=("KIND", "TOKENS"), help="measure, print JSON")
    arguments = parser.parse_args()
    if arguments.one is not None:
        kind, tokens = arguments.one
        print(json.dumps(measure(KINDS[kind], int(tokens), arguments.device)))
        return
    with section("Long examples", " ".join(["python -m benchmarks.bench_long", *sys.argv[1:]])):
        print("0.5M parameters, recomputed blocks; bytes a token, of tensors and of the process")
        print(f"{'tokens':<18}" + "".join(f"{length:>16,}" for length in LENGTHS))
        for kind in KINDS:
            cells = [alone(kind, length, arguments.device) for length in LENGTHS]
            print(f"{kind:<18}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


def alone(kind: str, tokens: int, device: str) -> str:
    """A cell of the table, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_long", "--device", device]
    done = subprocess.run([*command, "--one", kind, str(tokens)], capture_output=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.decode())
    tensors, process = json.loads(done.stdout.splitlines()[-1])
    return f"{tensors / tokens:,.0f} {process / tokens:,.0f}"


def measure(changes: dict[str, Any], tokens: int, name: str) -> tuple[int, int]:
    """Bytes besides weights and moments: of tensors, and of the process."""
    device = pick_device(name)
    config = replace(workload.SHAPES["0.5M"], max_position_embeddings=LENGTHS[-1], **changes)
    _, trainer = prepared(config, case(512), device)
    for _ in range(STEPS):
        trainer.step()
    _, trainer = prepared(config, case(tokens), device)
    before = reset_peak(device)
    for _ in range(STEPS):
        trainer.step()
    process = peak(device) - before
    if device.type == "cuda":
        return process - held(trainer), process
    return counted(trainer.step), process


def case(tokens: int) -> Case:
    """A step of one example."""
    settings = SETTINGS
    return Case(shape="9.0M", settings=settings, tokens=tokens, longest=tokens, micro_batches=1)


if __name__ == "__main__":
    main()
