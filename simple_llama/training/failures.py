"""A rank that fails ends all ranks, and rank 0, the only one that prints, says why."""

import contextlib
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from simple_llama.errors import InputError
from simple_llama.process import process_start_time

GRACE_SECONDS = 2.0
"""How long a rank whose connection broke waits to learn why."""
# keys of the store that all ranks see
_FAILED, _TRACEBACK, _TERMINATED, _FIRST_KNOWS = "failed", "traceback", "terminated", "first knows"


class RankFailed(InputError):
    """Another rank failed, or is gone; the message says why."""


@dataclass(frozen=True, kw_only=True)
class RankProcess:
    """A rank's process, so that ranks on the same machine can tell whether it still runs."""

    rank: int
    host: str
    pid: int
    started: str | None

    @classmethod
    def current(cls, rank: int) -> "RankProcess":
        pid = os.getpid()
        return cls(rank=rank, host=platform.node(), pid=pid, started=process_start_time(pid))

    @property
    def is_gone(self) -> bool:
        return self.host == platform.node() and process_start_time(self.pid) != self.started


class RankFailures:
    """What one rank knows of failures of the others. store: torchrun's, which outlives the
    ranks."""

    def __init__(self, store: Any, rank: int, others: list[RankProcess]) -> None:
        self.store, self.rank, self.others = store, rank, others

    @contextlib.contextmanager
    def propagate(self) -> Iterator[None]:
        """Tell the other ranks of an error within the block. Where it is only the consequence of
        another rank's (a broken connection, torchrun's SIGTERM), raise that one instead.

        Raises RankFailed.
        """
        try:
            yield
        except RankFailed:
            raise
        except BaseException as error:
            # once one rank has ended, torchrun sends it to the others: it adds nothing to what is
            # known here, and what follows, such as the end of the tracked run, takes time
            before = _set_sigterm(signal.SIG_IGN)
            reason = self._elsewhere(error)
            if reason is None and isinstance(error, RuntimeError) and self._known(_TERMINATED):
                _set_sigterm(before)
                signal.raise_signal(signal.SIGTERM)
            self._tell(error, reason)
            if reason is not None:
                raise RankFailed(reason) from None
            raise

    def _elsewhere(self, error: BaseException) -> str | None:
        """What happened to another rank, if that is behind this error."""
        if not isinstance(error, RuntimeError | SystemExit):
            return None
        patience = time.monotonic() + (GRACE_SECONDS if isinstance(error, RuntimeError) else 0.0)
        while True:
            # before the store: a rank that was not killed has told it there by then
            gone = [other for other in self.others if other.is_gone]
            if self._known(_FAILED):
                if self.rank == 0 and self._known(_TRACEBACK):
                    print(self.store.get(_TRACEBACK).decode(), file=sys.stderr)
                return str(self.store.get(_FAILED).decode())
            if self._known(_TERMINATED):
                return None
            if gone:
                return f"rank {gone[0].rank} (process {gone[0].pid}) is gone: killed, or crashed"
            if time.monotonic() > patience:
                return None
            time.sleep(0.05)

    def _tell(self, error: BaseException, reason: str | None) -> None:
        stopped = reason is None and isinstance(error, SystemExit | KeyboardInterrupt)
        if self.rank == 0 and not stopped:
            self.store.set(_FIRST_KNOWS, "")
        elif stopped:
            self.store.set(_TERMINATED, "")
        elif not self._known(_FAILED):
            kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
            if reason is None and kind:
                self.store.set(_TRACEBACK, "".join(traceback.format_exception(error)))
            self.store.set(_FAILED, reason or f"rank {self.rank}: {kind}{error}")
        # the end of this rank makes torchrun end rank 0, which may be about to say the same
        until = time.monotonic() + GRACE_SECONDS / 2
        while self.rank and not stopped and time.monotonic() < until:
            if self._known(_FIRST_KNOWS):
                break
            time.sleep(0.02)

    def _known(self, key: str) -> bool:
        return bool(self.store.check([key]))


def _set_sigterm(handler: Any) -> Any:
    """Returns the handler so far. Python allows handlers in the main thread only."""
    if threading.current_thread() is threading.main_thread():
        return signal.signal(signal.SIGTERM, handler)
    return None
