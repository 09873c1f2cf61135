"""What a killed training continues from, exactly: its state on disk.

    <main root>/.resume/<key>/
        start.json             its MLflow run, ranks and threads, from before the first step on
        state.json             step, progress, digests of what counts below; written last
        state-120.safetensors  weights and AdamW's moments after step 120; several ranks: state-120/
        best-96/               the best model so far, a model folder or an adapter's
        epoch-02/              kept by ckpt_epochs
        published              the MLflow run, once all outs are written

The key is a hash of all that the result depends on (see `inputs`), so no other training can ever
continue from it.
Order and dropout are functions of (seed, step): no random state has to be kept.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from simple_llama.errors import InputError
from simple_llama.files import atomic_path, atomic_write, digest, read_json, write_json
from simple_llama.process import LOCKS, try_lock
from simple_llama.training.distributed import SINGLE_PROCESS, Ranks
from simple_llama.training.snapshot_files import write_tensors

RESUME = ".resume"
"""The folder of all states, under the main root."""
WEIGHT_FILES = "*.safetensors"
MAX_SAVING_SHARE = 0.02
"""Of the time, that saving may take; where it takes more, the interval grows."""
FORGET_AFTER = 24 * 3600
"""Seconds after which a published state is of no use: DVC has long saved the stage's outs."""


def key_lock(root: Path, key: str) -> Path:
    """The path of the lock that a training with this key holds."""
    return root / LOCKS / f"train-{key}.lock"


class DamagedState(InputError):
    """A resume state that cannot be trusted."""


class WorldSizeChanged(InputError):
    """The resume state is of another number of ranks, which add in another order."""


@dataclass(frozen=True, kw_only=True)
class TrainingStart:
    """What stays the same however often a training is continued."""

    run: dict[str, Any]
    """What identifies its tracked run."""
    ranks: int
    threads: int
    """Of PyTorch: another number adds in another order."""


class ResumeFolder:
    """One training's folder under .resume. Rank 0 alone uses it, and holds its lock."""

    def __init__(self, folder: Path, interval: float, ranks: Ranks = SINGLE_PROCESS) -> None:
        self.folder = folder
        self.interval = interval
        self.ranks = ranks
        self._start = folder / "start.json"
        self._state = folder / "state.json"
        self._due = time.monotonic() + interval

    def load_or_save_start(self, new: TrainingStart) -> TrainingStart:
        """The start that is kept here; else `new`, which is kept from now on."""
        try:
            known = TrainingStart(**read_json(self._start))
        except (OSError, TypeError, ValueError):
            known = None
        if known is not None and known.ranks == new.ranks:
            return known
        write_json(self._start, dataclasses.asdict(new))
        return new

    def best_path(self, step: int) -> Path:
        """Where to save the model that is the best after this step."""
        return self.folder / f"best-{step}"

    def saved_best(self, step: int) -> Path:
        """That model, already saved. Raises InputError where somebody has removed it since."""
        if not any(self.best_path(step).glob(WEIGHT_FILES)):
            raise InputError(f"{self.best_path(step)} has vanished; the same command trains afresh")
        return self.best_path(step)

    def epoch_path(self, epoch: int) -> Path:
        """Where to save the model after this epoch (1, 2, ...)."""
        return self.folder / f"epoch-{epoch:02}"

    def epoch_paths(self) -> list[Path]:
        return sorted(self.folder.glob("epoch-*"))

    def is_due(self) -> bool:
        """Whether the interval since the last saving is over (an interval of 0 never is)."""
        return self.interval > 0 and time.monotonic() >= self._due

    def save(
        self, tensors: Mapping[str, Tensor], about: Mapping[str, Any], *, step: int, best: int
    ) -> None:
        """Put the state after `step` in the place of the one before; best: the best model's step,
        0 for none yet. The other ranks are sent the path, and write their part of the tensors.

        Raises OSError where the disk refuses; the state before it is then still whole.
        """
        began = time.monotonic()
        path = self._tensors(step)
        with atomic_path(path) as temporary:
            self.ranks.broadcast(temporary)
            write_tensors(tensors, temporary, self.ranks)
        files = [
            *(sorted(path.iterdir()) if path.is_dir() else [path]),
            *(sorted(self.saved_best(best).glob(WEIGHT_FILES)) if best else []),
        ]
        digests = {str(file.relative_to(self.folder)): digest([file]) for file in files}
        with atomic_write(self._state) as file:
            file.write(json.dumps({"step": step, "digests": digests, "about": about}).encode())
        for old in [*self.folder.glob("state-*"), *self.folder.glob("best-*")]:
            if old not in (path, self.best_path(best)):
                _remove(old)
        now = time.monotonic()
        self._due = now + max(self.interval, (now - began) / MAX_SAVING_SHARE)

    def skip_save(self) -> None:
        """Tell the other ranks that there is nothing to save."""
        self.ranks.broadcast(None)

    def _tensors(self, step: int) -> Path:
        return self.folder / (
            f"state-{step}.safetensors" if self.ranks.world_size == 1 else f"state-{step}"
        )

    def load(self) -> tuple[Path, dict[str, Any]] | None:
        """Where the state's tensors are, and its `about`; None where there is none.

        Raises DamagedState where a byte of it is not what was written, WorldSizeChanged where
        another number of ranks wrote it.
        """
        if not self._state.exists():
            return None
        try:
            state, start = read_json(self._state), TrainingStart(**read_json(self._start))
            about, path = dict(state["about"]), self._tensors(int(state["step"]))
            if start.ranks != self.ranks.world_size:
                raise WorldSizeChanged(
                    f"this training was begun by {start.ranks} ranks and is continued by "
                    f"{self.ranks.world_size}: wanted as many, or no {self.folder} to start afresh"
                )
            if not any(Path(name).is_relative_to(path.name) for name in state["digests"]):
                raise DamagedState(f"{self._state}: it names no {path.name}")
            for name, known in state["digests"].items():
                if digest([self.folder / Path(name)]) != known:
                    raise DamagedState(f"{self.folder / name}: its bytes have changed")
            return path, about
        except (DamagedState, WorldSizeChanged):
            raise
        except OSError as error:
            raise DamagedState(f"{error.filename}: {error.strerror}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedState(f"{self._state}: {type(error).__name__}: {error}") from None

    def mark_published(self, run_id: str) -> None:
        """Note that all outs are written. The state stays until evaluate starts: DVC saves them
        first."""
        (self.folder / "published").write_text(run_id, encoding="utf-8")

    def clear(self) -> None:
        """Remove what a training left that ended before its first state, but for start.json: it
        names the tracked run."""
        for path in self.folder.glob("*"):
            if path != self._start:
                _remove(path)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove_published(root: Path, run_id: str) -> None:
    """Remove the state of the training that was published as this MLflow run.

    evaluate calls it: it runs only after DVC has saved what train wrote. States that were
    published more than a day ago go too.
    """
    for mark in (root / RESUME).glob("*/published"):
        old = time.time() - mark.stat().st_mtime > FORGET_AFTER
        if old or mark.read_text(encoding="utf-8") == run_id:
            # not free: another process runs the same training, and will take over this result
            with try_lock(key_lock(root, mark.parent.name)) as free:
                if free:
                    shutil.rmtree(mark.parent, ignore_errors=True)
