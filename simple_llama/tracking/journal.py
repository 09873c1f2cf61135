"""Calls on their way to the store: a thread that sends them in order, a spool for what must wait.

    run.log(...) ─▶ Outbox (memory) ─▶ thread ─▶ the store
                                         └─ it fails ─▶ Spool (disk) ─▶ the store, later

A call is a JSON object: the name of a StoredRun method under "do", and its arguments. Each can be
sent twice without harm, so a spool that was half sent is simply sent again.
"""

import contextlib
import fcntl
import json
import shutil
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from simple_llama.errors import InputError
from simple_llama.process import warn
from simple_llama.tracking.location import Location

Call = dict[str, Any]
Point = tuple[str, float, int, int]
"""Metric name, value, milliseconds since 1970, step."""

BATCH = 1000
"""Points in one request, at most (MLflow's own limit)."""
INTERVAL = 2.0
"""Seconds between two sendings: what kill -9 can cost; each sending costs 10 ms of processor."""
RETRY = 30.0
"""Seconds between two tries to reach a store that failed."""


class Refused(Exception):
    """The store will never take this call; sending it again is pointless."""


class Hopeless(Exception):
    """The store will take no call of this run until somebody mends what the message says."""


class Spool:
    """One run's unsent calls on disk; locked by the process that writes or replays them."""

    def __init__(self, folder: Path, opening: Call | None = None) -> None:
        self.folder = folder
        self._opening = opening
        self.journal = folder / "calls.jsonl"
        self._lock: IO[str] | None = None

    @classmethod
    def of(cls, location: Location, experiment: str, opening: Call) -> "Spool":
        """The spool of the run that `opening` opens; nothing is on disk until something fails."""
        name = f"{location.spool_name(experiment)}-{time.time_ns()}-{opening['local_id']}"
        return cls(location.spool / name, opening)

    @classmethod
    def orphans(cls, location: Location, experiment: str) -> Iterator["Spool"]:
        """Spools for this store whose process is gone, oldest first, each locked in its turn."""
        for folder in sorted(location.spool.glob(f"{location.spool_name(experiment)}-*")):
            spool = cls(folder)
            if spool and spool._try_lock():
                try:
                    yield spool
                finally:
                    spool.release()

    def __bool__(self) -> bool:
        return self.journal.exists()

    def append(self, call: Call) -> None:
        """Keep a call, with a copy of the file or folder it is about."""
        if self._lock is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._try_lock()
        if "path" in call:
            call = {**call, "path": self._copy(Path(call["path"]))}
        # who replays it has to find the run first
        calls = [call] if self or call == self._opening else [self._opening, call]
        with open(self.journal, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in calls))

    def replay(self, send: Callable[[Call], None]) -> None:
        """Send every call in order and remove the spool.

        Where sending fails (any exception but Refused) what is left stays, and it raises.
        """
        calls = self._calls()
        for done, call in enumerate(calls):
            try:
                send(call)
            except Refused as refusal:
                warn(f"MLflow refused '{call['do']}': {refusal}")
            except Exception:
                # the first call opens the run: it is needed again, and harmless
                self._rewrite([*calls[: min(done, 1)], *calls[done:]])
                raise
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()

    def _copy(self, path: Path) -> str:
        kept = self.folder / "files" / str(time.time_ns()) / path.name
        kept.parent.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, kept)
        else:
            shutil.copyfile(path, kept)
        return str(kept)

    def _calls(self) -> list[Call]:
        calls = []
        with contextlib.suppress(FileNotFoundError):
            for line in self.journal.read_text(encoding="utf-8").splitlines():
                # kill -9 can leave half a last line
                with contextlib.suppress(json.JSONDecodeError):
                    calls.append(json.loads(line))
        return calls

    def _rewrite(self, calls: list[Call]) -> None:
        draft = self.journal.with_suffix(".new")
        draft.write_text("".join(json.dumps(call) + "\n" for call in calls), encoding="utf-8")
        draft.replace(self.journal)

    def _try_lock(self) -> bool:
        try:
            # held as long as the process lives: that is what the lock says
            self._lock = open(self.folder / "lock", "a")  # noqa: SIM115
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.release()
            return False
        return True

    def release(self) -> None:
        """Leave what is spooled to others."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


class Outbox:
    """A queue that never blocks the one who fills it, and the thread that empties it.

    `send` delivers one call and raises when it cannot; `sample` gives the machine's metrics.
    Both are called from the thread alone.
    """

    def __init__(
        self,
        send: Callable[[Call], None],
        spool: Spool,
        sample: Callable[[], dict[str, float]],
        *,
        sample_interval: float,
        first_sample: int = 0,
    ) -> None:
        self._send = send
        self._spool = spool
        self._sample = sample
        self._sample_interval = sample_interval
        self._queue: deque[Point | Call | threading.Event] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._hopeless = False
        self._samples = first_sample
        self._next_sample = time.monotonic()
        self._next_retry = 0.0
        self.cpu_seconds = 0.0
        """What the thread has cost."""
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def points(self, step: int, metrics: Iterator[tuple[str, float]], timestamp: int) -> None:
        self._queue.extend((key, value, timestamp, step) for key, value in metrics)

    def put(self, do: str, **arguments: Any) -> None:
        self._queue.append({"do": do, **arguments})

    def wait(self) -> None:
        """Until all that was put so far is sent or spooled."""
        reached = threading.Event()
        self._queue.append(reached)
        self._wake.set()
        while not reached.wait(1.0):
            if not self._thread.is_alive():
                return

    def close(self, last: Call) -> None:
        """Sample the machine once more, send everything, then `last`, and end the thread."""
        self._next_sample = 0.0
        self.wait()
        self._queue.append(last)
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _work(self) -> None:
        closing = False
        while not closing:
            closing = self._closing
            try:
                self._sample_machine()
                self._send_queue()
                self._send_spool(now=closing)
            except Exception:
                # nothing that happens here may reach the training
                warn(f"tracking failed: {traceback.format_exc(limit=-3)}")
            self.cpu_seconds = time.thread_time()
            if not closing:
                self._wake.wait(INTERVAL)
                self._wake.clear()
        self._spool.release()

    def _sample_machine(self) -> None:
        if time.monotonic() < self._next_sample:
            return
        self._next_sample = time.monotonic() + self._sample_interval
        self.points(self._samples, iter(self._sample().items()), milliseconds())
        self._samples += 1

    def _send_queue(self) -> None:
        batch: list[Point] = []
        while self._queue:
            item = self._queue.popleft()
            if isinstance(item, tuple):
                batch.append(item)
            if batch and (len(batch) == BATCH or not isinstance(item, tuple) or not self._queue):
                self._deliver({"do": "points", "points": batch})
                batch = []
            if isinstance(item, dict):
                self._deliver(item)
            elif isinstance(item, threading.Event):
                item.set()

    def _deliver(self, call: Call) -> None:
        if self._hopeless:
            return
        if not self._spool:
            try:
                self._send(call)
                return
            except Refused as refusal:
                warn(f"MLflow refused '{call['do']}': {refusal}")
                return
            except Hopeless as error:
                self._hopeless = True
                warn(f"this run is not tracked: {error}")
                return
            except Exception as error:
                self._next_retry = time.monotonic() + RETRY
                warn(
                    f"MLflow failed ({brief(error)}); the work goes on, and what MLflow misses "
                    f"is kept in {self._spool.folder} and sent later"
                )
        try:
            self._spool.append(call)
        except OSError as error:
            warn(f"a call '{call['do']}' to MLflow is lost: {brief(error)}")

    def _send_spool(self, *, now: bool) -> None:
        if not self._spool or (time.monotonic() < self._next_retry and not now):
            return
        try:
            self._spool.replay(self._send)
            warn("MLflow answers again, and has got what it had missed", "note")
        except Exception as error:
            self._next_retry = time.monotonic() + RETRY
            if now:
                warn(
                    f"MLflow still fails ({brief(error)}); the next run sends what is kept in "
                    f"{self._spool.folder}"
                )


def milliseconds() -> int:
    """Since 1970, as MLflow counts."""
    return int(time.time() * 1000)


def brief(error: Exception) -> str:
    """The first line of what a library says; what is ours to say, whole."""
    if isinstance(error, InputError):
        return str(error)
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
