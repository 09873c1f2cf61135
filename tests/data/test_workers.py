"""Batches on several processes: in order, in bounded memory, and none is left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from simple_llama.data.workers import MAX_PENDING_PER_PROCESS, Workers
from simple_llama.errors import InputError, Terminated, terminated_by_signal
from tests.support.project import ROOT

pytestmark = pytest.mark.slow


def works(factor: int) -> Callable[[int], int]:
    return partial(work, factor)


def work(factor: int, number: int) -> int:
    if number < 0:
        raise InputError(f"{number} is negative")
    if number == 1_000:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid() if number == 2_000 else factor * number


def test_results_come_in_order_and_batches_are_read_as_they_are_needed() -> None:
    read = []

    def numbers() -> Iterator[int]:
        for number in range(50):
            read.append(number)
            yield number

    with Workers(partial(works, 3), 2) as workers:
        results = workers.in_order(numbers())
        assert next(results) == 0
        assert len(read) == 2 * MAX_PENDING_PER_PROCESS + 1
        assert list(results) == [3 * number for number in range(1, 50)]


def test_the_first_batch_that_fails_is_the_one_that_is_named() -> None:
    given = []
    with (
        pytest.raises(InputError, match=r"^-7 is negative$"),
        Workers(partial(works, 1), 2) as workers,
    ):
        for result in workers.in_order([1, 2, -7, -8, 3]):
            given.append(result)
    assert given == [1, 2]


def test_a_killed_process_is_one_line() -> None:
    with (
        pytest.raises(InputError, match="one of 2 encoding processes was killed, as the system"),
        Workers(partial(works, 1), 2) as workers,
    ):
        list(workers.in_order([1, 1_000, 2]))


def test_a_signal_waits_until_the_processes_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []
    with (
        pytest.raises(Terminated),
        terminated_by_signal(),
        Workers(partial(works, 1), 2) as workers,
    ):
        [pid] = workers.in_order([2_000])
        shutdown = workers._pool.shutdown

        def interrupted(**options: Any) -> None:
            signal.raise_signal(signal.SIGTERM)
            shutdown(**options)
            ended.append(not psutil.pid_exists(pid))

        monkeypatch.setattr(workers._pool, "shutdown", interrupted)
    assert ended == [True]


PARENT = """
import itertools, os, signal, sys
from functools import partial
from simple_llama.data.workers import Workers
from simple_llama.errors import one_line_errors
from simple_llama.files import atomic_write
from tests.data.test_workers import works
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background shells ignore it
    with one_line_errors(), atomic_write("written"), Workers(partial(works, 1), 2) as workers:
        for number, pid in enumerate(workers.in_order(itertools.repeat(2_000))):
            if number < 20:
                print(pid, flush=True)
            elif number == 20:
                kill = os.killpg if sys.argv[1] == "group" else os.kill
                kill(os.getpid(), signal.Signals[sys.argv[2]])
"""


@pytest.mark.parametrize(
    ("victim", "number", "code"),
    [
        ("group", signal.SIGINT, 130),
        ("parent", signal.SIGTERM, 143),
        ("parent", signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_whether_interrupted_ended_or_killed_it_leaves_no_process(
    victim: str, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    done = subprocess.run(
        [sys.executable, "parent.py", victim, number.name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    pids = {int(line) for line in done.stdout.split()}
    assert (
        pids
        and not psutil.wait_procs(
            [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=30
        )[1]
    )
    if number != signal.SIGKILL:
        assert done.stderr == ""
        assert [path.name for path in tmp_path.iterdir()] == ["parent.py"], "nothing half-written"
