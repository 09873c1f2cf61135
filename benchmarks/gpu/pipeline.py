"""The stages on the demo, without DVC, in a copy of the project; verify; and what a training
that is killed, or computed again, ends with."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file

from simple_llama.files import digest

STAGES = ("prepare", "tokenize", "baseline", "train", "evaluate")
COPIED = ("simple_llama", "stages", "models/demo", "data/raw")
FILES = ("params.yaml", "dvc.yaml", "requirements.lock")
WEIGHTS = Path("models/sft/model.safetensors")
POLL = 0.05
"""Seconds between two looks for a resume state."""


class Pipeline:
    """A copy of the project in a folder, and what is left of its time."""

    def __init__(
        self, folder: Path, device: str, seconds: float, base_steps: int, **params: object
    ) -> None:
        self.root, self.ends = folder, time.monotonic() + seconds
        for name in COPIED:
            shutil.copytree(name, folder / name, ignore=shutil.ignore_patterns("base", "*.pyc"))
        for name in FILES:
            shutil.copyfile(name, folder / name)
        (folder / ".dvc").mkdir()  # the root of its runs and resume states
        self.set("params.yaml", device=device, **params)
        base = {"device": device, "precision": "auto", "max_steps": base_steps}
        self.set("models/demo/params.yaml", **base)

    def set(self, file: str, **values: object) -> None:
        path = self.root / file
        lines = path.read_text(encoding="utf-8").splitlines()
        for key, value in values.items():
            at = next(i for i, line in enumerate(lines) if line.startswith(f"{key}:"))
            lines[at] = f"{key}: {value}"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def measure(self) -> Iterator[str]:
        """A line for each thing done, with its seconds. Raises RuntimeError, and
        subprocess.TimeoutExpired where the time is over."""
        seconds, _ = self.run("models.demo.base")
        yield f"the demo's base model {seconds:.1f} s"
        for stage in STAGES:
            seconds, said = self.run(f"stages.{stage}")
            how = [line for line in said.splitlines() if line.startswith("micro-batches")]
            yield f"{stage} {seconds:.1f} s{'; ' + how[0] if how else ''}"
        seconds, said = self.run("simple_llama.cli", "verify")
        yield f"verify {seconds:.1f} s: {said.count('  ok')} hold, {said.count('FAILED')} do not"
        for deterministic in ("false", "true"):
            self.set("params.yaml", deterministic=deterministic)
            whole, again, killed = (self.trained(kill=kill) for kill in (False, False, True))
            yield (
                f"deterministic: {deterministic}: trained again {difference(whole, again)}, "
                f"killed and continued {difference(whole, killed)}"
            )

    def trained(self, *, kill: bool) -> Path:
        """The weights of a training from the beginning, or of one that is killed and continued."""
        shutil.rmtree(self.root / ".resume", ignore_errors=True)
        shutil.rmtree(self.root / "models/sft", ignore_errors=True)
        if kill:
            self.killed()
        self.run("stages.train")
        kept = self.root / f"kept-{digest([self.root / WEIGHTS])[:8]}-{time.monotonic_ns()}"
        return Path(shutil.copyfile(self.root / WEIGHTS, kept))

    def killed(self) -> None:
        """Start a training, and kill it at once when it could be continued."""
        process = self.start("stages.train")
        try:
            while process.poll() is None and not list(self.root.glob(".resume/*/state.json")):
                time.sleep(POLL)
                if time.monotonic() > self.ends:
                    raise subprocess.TimeoutExpired("stages.train", 0)
        finally:
            with contextlib.suppress(ProcessLookupError):  # it was faster
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def run(self, module: str, *arguments: str) -> tuple[float, str]:
        """Seconds of a module, and what it said."""
        began = time.monotonic()
        process = self.start(module, *arguments)
        try:
            said, _ = process.communicate(timeout=max(1.0, self.ends - began))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        if process.returncode:
            raise RuntimeError(f"{module}: {said.strip().splitlines()[-1]}")
        return time.monotonic() - began, said

    def start(self, module: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(self.root), "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def difference(one: Path, other: Path) -> str:
    """Between the weights in two files."""
    if one.read_bytes() == other.read_bytes():
        return "the same bytes"
    mine, theirs = load_file(one), load_file(other)
    most = max(float((mine[name] - theirs[name]).abs().max()) for name in mine)
    return f"weights differ by up to {most:.2g}"
