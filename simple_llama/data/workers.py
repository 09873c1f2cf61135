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
from typing import Any, TypeVar

from simple_llama.errors import InputError

Batch = TypeVar("Batch")
Need = TypeVar("Need")
Result = TypeVar("Result")

AHEAD = 2
"""Batches that wait for each process: a bound for memory."""

_work: list[Callable[[Any], Any]] = []
"""What this process does, once it has started: a pool gives its initializer no other place."""


def in_order(
    batches: Iterable[Batch],
    needed: Callable[[Batch], Need],
    make: Callable[[], Callable[[Need], Result]],
    processes: int,
) -> Iterator[tuple[Batch, Result]]:
    """Each batch and what the function that `make` makes, once in every process, gives for what
    is `needed` of it; that and the result are pickled.

    Raises what that function raises for the first batch that fails, and InputError where a process
    is killed.
    """
    pool = ProcessPoolExecutor(
        processes,
        # a fork would copy the locks of the caller's threads, not the threads
        multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(make,),
    )
    waiting: deque[tuple[Batch, Future[Result]]] = deque()
    try:
        for batch in batches:
            with _uninterrupted():  # it may start a process
                waiting.append((batch, pool.submit(_do, needed(batch))))
            if len(waiting) > AHEAD * processes:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    except BrokenProcessPool:
        raise InputError(
            f"one of {processes} encoding processes was killed, wanted enough memory for all"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


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


def _start(make: Callable[[], Callable[[Any], Any]]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _work.append(make())


def _end_with_parent() -> None:
    """A killed parent would leave its processes waiting for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _do(need: Any) -> Any:
    [work] = _work
    return work(need)
