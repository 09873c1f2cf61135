"""Who holds what, and whose death ends whom."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from simple_llama.process import claim_locks, dvc_process_id, file_lock
from tests.support.project import ROOT

WAITER = """
import sys
from pathlib import Path
from simple_llama.process import file_lock
with file_lock(Path(sys.argv[1]), "this training"):
    print("mine")
"""
WORKER = """
import sys
from simple_llama.process import claim_locks
count = 2 if "both" in sys.argv else 1
with claim_locks(["gpu-a", "gpu-b"], count=count, share="share" in sys.argv) as places:
    print(*places, flush=True)
    sys.stdin.readline()
"""
STAGE = """
import time
from simple_llama.stage_code import as_stage
with as_stage("stages.any"):
    print("running", flush=True)
    time.sleep(60)
"""


def test_who_waits_for_a_lock_says_for_whom_and_goes_on(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "a.lock"
    with file_lock(lock, "this training"):
        waiter = subprocess.Popen(
            [sys.executable, "-c", WAITER, str(lock)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert waiter.stderr is not None
        said = waiter.stderr.readline()
        assert said.startswith(f"note: this training: waiting for process {os.getpid()} in ")
        assert waiter.poll() is None
    out, errors = waiter.communicate()
    assert out == "mine\n"
    assert "it is free now, going on" in errors


def test_a_lock_nobody_holds_is_taken_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        with file_lock(tmp_path / "a.lock", "this training"):
            pass
    assert capsys.readouterr().err == ""


class Worker:
    """A process that claims one of two devices and keeps it until it is told to go."""

    def __init__(self, root: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, *arguments],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def says(self, stream: str = "stdout") -> str:
        return str(getattr(self.process, stream).readline())

    def go(self) -> None:
        self.process.communicate("go\n")


def test_workers_take_free_devices_and_the_third_waits_for_one(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    first, second = Worker(tmp_path), None
    assert first.says() == "0\n"
    second = Worker(tmp_path)
    assert second.says() == "1\n"
    third = Worker(tmp_path)
    said = third.says("stderr")
    assert said.startswith("note: waiting for a free device (gpu-a, gpu-b): process ")
    assert str(first.process.pid) in said and str(second.process.pid) in said
    second.go()
    assert third.says() == "1\n", "the one that got free"
    first.process.kill()
    first.process.communicate()
    fourth = Worker(tmp_path)
    assert fourth.says() == "0\n", "a killed worker holds nothing"
    third.go()
    fourth.go()


def test_who_wants_two_devices_takes_both_or_none(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    first = Worker(tmp_path)
    assert first.says() == "0\n"
    both = Worker(tmp_path, "both")
    assert both.says("stderr").startswith("note: waiting for 2 free devices (gpu-a, gpu-b): ")
    second = Worker(tmp_path)
    assert second.says() == "1\n", "the one that waits holds none"
    first.go()
    second.go()
    assert both.says() == "0 1\n"
    both.go()


def test_a_device_is_shared_only_where_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    workers = [Worker(tmp_path, "share") for _ in range(3)]
    assert {worker.says() for worker in workers} == {"0\n", "1\n"}
    for worker in workers:
        worker.go()


def test_a_cpu_is_nobodys() -> None:
    with claim_locks([None]) as first, claim_locks([None]) as second:
        assert first == second == [0]
    with claim_locks([None], count=3) as three:
        assert three == [0, 0, 0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stage_ends_when_its_dvc_is_gone(number: signal.Signals, tmp_path: Path) -> None:
    """Between DVC and the stage stands a shell, which DVC's death leaves alive."""
    fake = tmp_path / "dvc"
    shell = f"{sys.executable} -c '{STAGE}'; echo shell goes on"
    fake.write_text(f"import subprocess\nsubprocess.run(['sh', '-c', {shell!r}])\nprint('never')\n")
    dvc = subprocess.Popen(
        [sys.executable, str(fake), "repro"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "DVC_ROOT": str(tmp_path)},
        text=True,
    )
    assert dvc.stdout is not None
    assert dvc.stdout.readline() == "running\n"
    dvc.send_signal(number)
    said = dvc.stdout.read()
    assert f"dvc (process {dvc.pid}) is gone, so this stage ends" in said
    assert said.endswith("shell goes on\n"), "the stage ended, long before its 60 seconds"
    assert "never" not in said


def test_without_dvc_a_stage_has_no_dvc_ancestor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert dvc_process_id() is None


@pytest.mark.parametrize("stage", ["baseline", "train", "evaluate"])
def test_ctrl_c_while_torch_is_imported_says_nothing(stage: str, tmp_path: Path) -> None:
    (tmp_path / "stages").symlink_to(ROOT / "stages")
    (tmp_path / "torch.py").write_text("import signal; signal.raise_signal(signal.SIGINT)\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"stages.{stage}"]
    run = subprocess.run(
        command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "")
