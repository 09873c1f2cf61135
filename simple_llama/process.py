"""Processes and locks: where the main repository is, whether DVC still runs, who holds a device.

Nothing here changes what a stage computes.
"""

import contextlib
import errno
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from simple_llama.errors import InputError

LOCKS = ".locks"
"""Folder of the lock files, under the main root."""
NO_LOCK_ERRNOS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What flock says on a file system without locks: some of NFS, Lustre and FUSE."""
CLAIM_INTERVAL = 0.5
"""Seconds between two tries to get a device."""
WATCH_INTERVAL = 0.5
"""Seconds between two checks that DVC still runs."""


def main_root() -> Path:
    """The root of the main repository, also from within one of DVC's temporary copies of it.

    DVC_ROOT is believed only where it can be true: DVC sets it for its stages, but one exported
    in a shell long ago would send the runs of every other repository to the wrong store.
    """
    here = Path.cwd().resolve()
    told = os.environ.get("DVC_ROOT")
    if told:
        root = Path(told).resolve()
        if (root / ".dvc").is_dir() and here.is_relative_to(root):
            return _outside_experiments(root)
    here = _outside_experiments(here)
    return next((p for p in (here, *here.parents) if (p / ".dvc").is_dir()), here)


def _outside_experiments(path: Path) -> Path:
    parts = path.parts
    for i in range(len(parts) - 2):
        if parts[i : i + 3] == (".dvc", "tmp", "exps"):
            return Path(*parts[:i])
    return path


def warn(message: str, kind: str = "warning") -> None:
    """One line on stderr; below a progress bar where one may be drawn."""
    start = "\n" if sys.stderr.isatty() else ""
    print(f"{start}{kind}: {' '.join(message.split())}", file=sys.stderr, flush=True)


def flock(file: IO[str], operation: int) -> None:
    """fcntl.flock. Raises BlockingIOError where another process holds the lock, InputError where
    the file system has none: without, two trainings would write over each other unnoticed."""
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno not in NO_LOCK_ERRNOS:
            raise
        raise InputError(
            f"{file.name}: this file system has no locks ({error.strerror}), which keep trainings, "
            "DVC and MLflow's database apart: wanted a checkout on one that has, such as a local "
            "disk or NFS with its lock service"
        ) from None


@contextmanager
def file_lock(path: Path, purpose: str | None = None) -> Iterator[None]:
    """Hold the exclusive lock `path`, waiting for it; the system frees it when a process dies.

    Where a purpose is given and another process holds the lock, a line says who and what for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if purpose is not None:
                warn(f"{purpose}: waiting for {_read_holder(path)} ({path})", "note")
            flock(file, fcntl.LOCK_EX)
            if purpose is not None:
                warn(f"{purpose}: it is free now, going on", "note")
        _write_holder(path)
        yield


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold the lock `path` if nobody else does; yields whether it is held."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        yield _lock_free([file], 1) is not None


@contextmanager
def claim_locks(
    names: Sequence[str | None], *, count: int = 1, share: bool = False
) -> Iterator[list[int]]:
    """Lock the first `count` devices that are free, all or none; yields their indices in `names`.

    While too few are free, it waits and says so; with `share` it yields any devices instead,
    without a lock. A device named None needs no lock, and stands for any number of devices.
    """
    if None in names:
        yield [names.index(None)] * count
        return
    paths = [main_root() / LOCKS / f"{name}.lock" for name in names]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(path, "a", encoding="utf-8")) for path in paths]
        free = _lock_free(files, count)
        if free is None and share:
            yield [(os.getpid() + i) % len(names) for i in range(count)]
            return
        if free is None:
            holders = "; ".join(_read_holder(path) for path in paths)
            what = "a free device" if count == 1 else f"{count} free devices"
            warn(f"waiting for {what} ({', '.join(map(str, names))}): {holders}", "note")
        while free is None:
            time.sleep(CLAIM_INTERVAL)
            free = _lock_free(files, count)
        for place in free:
            _write_holder(paths[place])
        yield free


def _lock_free(files: Sequence[IO[str]], count: int) -> list[int] | None:
    """Lock the first `count` files that nobody holds; their indices, or None where they are
    fewer."""
    held: list[int] = []
    for place, file in enumerate(files):
        if len(held) < count:
            with contextlib.suppress(BlockingIOError):
                flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held.append(place)
    if len(held) == count:
        return held
    for place in held:
        flock(files[place], fcntl.LOCK_UN)
    return None


def _write_holder(path: Path) -> None:
    """Say in a lock file who holds it; the lock itself does not depend on it."""
    with contextlib.suppress(OSError):
        path.write_text(f"process {os.getpid()} in {Path.cwd()}\n", encoding="utf-8")


def _read_holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()[:300] or "another process"
    except OSError:
        return "another process"


def process_start_time(pid: int) -> str | None:
    """When a process started, in the system's own units; None where it has ended.

    Process ids are reused; a pair of id and start is not.
    """
    if Path("/proc/self/stat").exists():
        try:
            # fields after the name, which may itself hold spaces and brackets
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    import psutil

    try:
        return str(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def dvc_process_id() -> int | None:
    """The process id of the DVC command that runs this stage; None where none does.

    DVC starts a shell, which starts the stage: DVC is found by its name among the ancestors.
    """
    if "DVC_ROOT" not in os.environ:
        return None
    import psutil

    try:
        for parent in psutil.Process().parents():
            # `dvc repro` of a console script, `python -m dvc repro`
            if any(Path(word).stem == "dvc" for word in parent.cmdline()[:3]):
                return int(parent.pid)
    except psutil.Error:
        return None
    return None


@contextmanager
def terminate_with(pid: int | None, name: str = "dvc") -> Iterator[None]:
    """Within the block, send this process SIGTERM when process `pid` is gone.

    A killed DVC leaves its stage running, and the next `dvc repro` would start another beside it.
    """
    if pid is None:
        yield
        return
    started = process_start_time(pid)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(WATCH_INTERVAL):
            if process_start_time(pid) != started:
                warn(f"{name} (process {pid}) is gone, so this stage ends")
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, name="terminate_with", daemon=True).start()
    try:
        yield
    finally:
        done.set()
