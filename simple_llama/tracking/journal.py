"""Sends calls to the MLflow store: a thread sends them in order, a spool on disk keeps failed ones.

    run.log(...) ─▶ Outbox (memory) ─▶ thread ─▶ the store
                                         └─ on failure ─▶ Spool (disk) ─▶ the store, later

A call is a JSON object: the name of a StoredRun method under "do", and its arguments. Sending a
call twice has the same effect as sending it once. So a spool that was partly sent is sent again.
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

MAX_POINTS_PER_REQUEST = 1000
"""MLflow's own limit."""
SEND_INTERVAL = 2.0
"""Seconds between requests. Metrics of this time can be lost by kill -9; a request takes 10 ms of
CPU time."""
RETRY_INTERVAL = 30.0
"""Seconds before a store that failed is tried again."""


class CallRefused(Exception):
    """The store will never accept this call, so it must not be sent again."""


class StoreUnusable(Exception):
    """The store will accept no call of this run until the user fixes the problem in the message."""


class Spool:
    """The unsent calls of one run on disk. The process that writes or replays them holds a lock."""

    def __init__(self, folder: Path, opening: Call | None = None) -> None:
        self.folder = folder
        self._opening = opening
        self.journal = folder / "calls.jsonl"
        self._lock: IO[str] | None = None

    @classmethod
    def of(cls, location: Location, experiment: str, opening: Call) -> "Spool":
        """The spool of the run that the call `opening` opens. Nothing is written until a call
        fails."""
        name = f"{location.spool_name(experiment)}-{time.time_ns()}-{opening['local_id']}"
        return cls(location.spool / name, opening)

    @classmethod
    def orphans(cls, location: Location, experiment: str) -> Iterator["Spool"]:
        """Spools for this store whose process has ended, oldest first; each is locked while it is
        yielded."""
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
        """Write a call to disk, with a copy of the file or folder under its "path", if any."""
        if self._lock is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._try_lock()
        if "path" in call:
            call = {**call, "path": self._copy(Path(call["path"]))}
        # a replay needs the opening call first, to find the run
        calls = [call] if self or call == self._opening else [self._opening, call]
        with open(self.journal, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in calls))

    def replay(self, send: Callable[[Call], None]) -> None:
        """Send every call in order, then remove the spool.

        If `send` raises anything but CallRefused, the unsent calls are kept and the error is
        raised.
        """
        calls = self._calls()
        for done, call in enumerate(calls):
            try:
                send(call)
            except CallRefused as refusal:
                warn(f"MLflow refused '{call['do']}': {refusal}")
            except Exception:
                # keep the first call too: it opens the run, and may be sent twice
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
                # kill -9 can leave an incomplete last line
                with contextlib.suppress(json.JSONDecodeError):
                    calls.append(json.loads(line))
        return calls

    def _rewrite(self, calls: list[Call]) -> None:
        draft = self.journal.with_suffix(".new")
        draft.write_text("".join(json.dumps(call) + "\n" for call in calls), encoding="utf-8")
        draft.replace(self.journal)

    def _try_lock(self) -> bool:
        try:
            # the lock is held while the process lives: it shows others that it does
            self._lock = open(self.folder / "lock", "a")  # noqa: SIM115
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.release()
            return False
        return True

    def release(self) -> None:
        """Give up the lock, so that another process may replay the spool."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


class Outbox:
    """A queue whose producer never waits, and the thread that sends its items.

    `send` delivers one call, or raises; `sample` returns metrics of the machine. Both are called
    only in the thread.
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
        """CPU time of the thread so far."""
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def points(self, step: int, metrics: Iterator[tuple[str, float]], timestamp: int) -> None:
        self._queue.extend((key, value, timestamp, step) for key, value in metrics)

    def put(self, do: str, **arguments: Any) -> None:
        self._queue.append({"do": do, **arguments})

    def wait(self) -> None:
        """Wait until everything queued so far is sent or spooled."""
        reached = threading.Event()
        self._queue.append(reached)
        self._wake.set()
        while not reached.wait(1.0):
            if not self._thread.is_alive():
                return

    def close(self, last: Call) -> None:
        """Sample the machine a last time, send everything and then `last`, and end the thread."""
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
                # an error of tracking must never stop the training
                warn(f"tracking failed: {traceback.format_exc(limit=-3)}")
            self.cpu_seconds = time.thread_time()
            if not closing:
                self._wake.wait(SEND_INTERVAL)
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
            if batch and (
                len(batch) == MAX_POINTS_PER_REQUEST
                or not isinstance(item, tuple)
                or not self._queue
            ):
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
            except CallRefused as refusal:
                warn(f"MLflow refused '{call['do']}': {refusal}")
                return
            except StoreUnusable as error:
                self._hopeless = True
                warn(f"this run is not tracked: {error}")
                return
            except Exception as error:
                self._next_retry = time.monotonic() + RETRY_INTERVAL
                warn(
                    f"MLflow failed ({short_message(error)}); the work goes on, and what MLflow "
                    f"misses is kept in {self._spool.folder} and sent later"
                )
        try:
            self._spool.append(call)
        except OSError as error:
            warn(f"a call '{call['do']}' to MLflow is lost: {short_message(error)}")

    def _send_spool(self, *, now: bool) -> None:
        if not self._spool or (time.monotonic() < self._next_retry and not now):
            return
        try:
            self._spool.replay(self._send)
            warn("MLflow answers again, and has got what it had missed", "note")
        except Exception as error:
            self._next_retry = time.monotonic() + RETRY_INTERVAL
            if now:
                warn(
                    f"MLflow still fails ({short_message(error)}); the next run sends what is kept "
                    f"in {self._spool.folder}"
                )


def milliseconds() -> int:
    """Milliseconds since 1970, as in MLflow."""
    return int(time.time() * 1000)


def short_message(error: Exception) -> str:
    """An error in one line: an InputError whole, of others the type and the first line."""
    if isinstance(error, InputError):
        return str(error)
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
