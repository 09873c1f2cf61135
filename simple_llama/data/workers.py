"""Runs a function on batches in several processes and yields the results in order."""

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

MAX_PENDING_PER_PROCESS = 2
"""Batches that are submitted ahead, per process. It bounds memory."""

_work: list[Callable[[Any], Any]] = []
"""The function of a worker process. The pool's initializer can pass it on only in a global."""


class Workers(Generic[Batch, Result]):
    """Worker processes. Each calls `make` once, then the function that it returned for each batch.

    It is a context manager; the processes end with it. `make`, batches and results are pickled.
    """

    def __init__(self, make: Callable[[], Callable[[Batch], Result]], processes: int) -> None:
        self.processes = processes
        self._pool = ProcessPoolExecutor(
            processes,
            # a fork would copy locks that other threads hold, but not those threads
            multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(make,),
        )

    def __enter__(self) -> "Workers[Batch, Result]":
        return self

    def __exit__(self, *error: object) -> None:
        with _deferred():  # an interrupted shutdown would leave processes that wait forever
            self._pool.shutdown(cancel_futures=True)

    def in_order(self, batches: Iterable[Batch]) -> Iterator[Result]:
        """The result of each batch, in the order of the batches.

        Raises the exception of the first batch that fails, and InputError where a process is
        killed.
        """
        waiting: deque[Future[Result]] = deque()
        try:
            for batch in batches:
                with _uninterrupted():  # submit may start a process
                    waiting.append(self._pool.submit(_do, batch))
                if len(waiting) > MAX_PENDING_PER_PROCESS * self.processes:
                    yield waiting.popleft().result()
            for future in waiting:
                yield future.result()
        except BrokenProcessPool:
            raise InputError(
                f"one of {self.processes} encoding processes was killed, as the system does where "
                "memory is short: wanted more of it"
            ) from None


def available_cores() -> int:
    """How many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Block SIGINT until the end of the block. A process that is started in the block keeps it
    blocked: a terminal sends Ctrl-C to all processes, but the caller must end the workers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _deferred() -> Iterator[None]:
    """Delay SIGINT and SIGTERM until after the block."""
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
    """End this worker when its parent is killed; it would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _do(batch: Any) -> Any:
    [work] = _work
    return work(batch)
