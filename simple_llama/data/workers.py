"""Encoding on all cores: batches go out to processes and come back in order."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from types import FrameType
from typing import Any, Generic, TypeVar

from simple_llama.errors import InputError

Batch = TypeVar("Batch")
Result = TypeVar("Result")

AHEAD = 2
"""Batches that wait for each process: a bound for memory."""

_work: list[Callable[[Any], Any]] = []
"""What this process does, once it has started: a pool gives its initializer no other place."""


class Workers(Generic[Batch, Result]):
    """Processes that each call `make` once and then what it returns, for one batch at a time.

    A context: they end with it. `make`, a batch and its result are pickled.
    """

    def __init__(self, make: Callable[[], Callable[[Batch], Result]], processes: int) -> None:
        self.processes = processes
        self._pool = ProcessPoolExecutor(
            processes,
            # a fork would copy the locks of the caller's threads, not the threads
            multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(make,),
        )

    def __enter__(self) -> "Workers[Batch, Result]":
        return self

    def __exit__(self, *error: object) -> None:
        with _deferred():  # half done, it would leave processes that wait for ever
            self._pool.shutdown(cancel_futures=True)

    def in_order(self, batches: Iterable[Batch]) -> Iterator[Result]:
        """The result for each batch.

        Raises what the work raises for the first batch that fails, and InputError where a process
        is killed.
        """
        waiting: deque[Future[Result]] = deque()
        try:
            for batch in batches:
                with _uninterrupted():  # it may start a process
                    waiting.append(self._pool.submit(_do, batch))
                if len(waiting) > AHEAD * self.processes:
                    yield waiting.popleft().result()
            for future in waiting:
                yield future.result()
        except BrokenProcessPool:
            raise InputError(
                f"one of {self.processes} encoding processes was killed, as the system does where "
                "memory is short: wanted more of it"
            ) from None


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the end of the block, and for ever in a process that is started in it:
    a terminal sends it to all, and the caller ends these."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _deferred() -> Iterator[None]:
    """Ctrl-C and SIGTERM within the block come after it."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {one: signal.signal(one, note) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    if came:
        signal.raise_signal(came[0])


def _start(make: Callable[[], Callable[[Any], Any]]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _work.append(make())


def _end_with_parent() -> None:
    """A killed parent would leave its processes waiting for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _do(batch: Any) -> Any:
    [work] = _work
    return work(batch)
