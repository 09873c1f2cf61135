"""Where a checkout may stand: file systems, groups of users, links in the place of folders."""

import errno
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from simple_llama.check import check
from simple_llama.errors import InputError
from simple_llama.model.folder import save_model
from simple_llama.model.lora import LoraConfig, add_adapters, save_adapter
from simple_llama.process import claim_locks, file_lock, try_lock
from simple_llama.tracking.location import Location
from simple_llama.tracking.store import Store
from simple_llama.training.distributed import SINGLE_PROCESS
from simple_llama.training.snapshot_files import write_tensors
from tests.support.models import random_model
from tests.support.project import ROOT


@pytest.fixture(params=[0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_every_file_has_the_mode_that_the_umask_gives(
    tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    model = random_model()
    save_model(model, tmp_path / "model")
    lora = LoraConfig(rank=1, alpha=1.0, dropout=0.0, targets=("q_proj",))
    add_adapters(model, lora, seed=0)
    save_adapter(model, tmp_path / "adapter", lora, "base")
    write_tensors({"a": torch.zeros(1)}, tmp_path / "state.safetensors", SINGLE_PROCESS)
    with file_lock(tmp_path / ".locks" / "a.lock"):
        pass
    Store(Location.find(), "an experiment")

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"model.safetensors", "a.lock", "mlflow.db"}
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in files}
    assert modes == dict.fromkeys(modes, oct(0o666 & ~umask))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_line(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.chdir(tmp_path)
    for lock in (file_lock(Path("a.lock")), try_lock(Path("a.lock")), claim_locks(["gpu"])):
        with pytest.raises(InputError, match=r"\.lock: this file system has no locks \("), lock:
            raise AssertionError
    shutil.copyfile(ROOT / "params.yaml", "params.yaml")
    with pytest.raises(InputError, match=r"check\.lock: this file system has no locks"):
        check()


def test_git_ignores_what_is_ours_as_links_too(tmp_path: Path) -> None:
    shutil.copyfile(ROOT / ".gitignore", tmp_path / ".gitignore")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "kept").mkdir(parents=True)
    for name in (".venv", "mlruns", ".resume", ".locks", ".mlflow-spool", "mlflow.db"):
        (tmp_path / name).symlink_to(elsewhere)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    status = ["git", "status", "--porcelain"]
    said = subprocess.run(status, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert said == "?? .gitignore\n"


@pytest.mark.parametrize(
    ("status", "refused"), [("Running", True), ("Queued", True), ("Success", False)]
)
def test_gc_waits_for_the_queue(status: str, refused: bool, tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").touch()
    (programs / "dvc").write_text(
        "#!/bin/sh\n"
        'echo "$1" >> called\n'
        "echo 'Task     Name    Created    Status'\n"
        f"echo '02ceb7f  Running 09:06 PM   {status}'\n"
    )
    (programs / "dvc").chmod(0o755)
    (tmp_path / ".venv" / "installed").touch()
    run = subprocess.run(["make", "gc"], check=False, cwd=tmp_path, capture_output=True, text=True)
    called = (tmp_path / "called").read_text().split()
    assert called == (["queue"] if refused else ["queue", "gc"])
    assert ("error: experiments run or wait" in run.stdout) == refused == bool(run.returncode)


@pytest.mark.parametrize("found", ["python3.11", "python3.12", "python3.13", "python3", None])
def test_make_takes_the_first_python_that_runs(found: str | None, tmp_path: Path) -> None:
    """The others are aliases of a version manager that lead nowhere."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    for name in ("python3.11", "python3.12", "python3.13", "python3"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\nexit {0 if name == found else 127}\n")
        program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    # what `make test` hands on to a make below it, which would name the folders it enters
    for name in ("PYTHON", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        environment.pop(name, None)
    run = subprocess.run(
        ["make", ".venv/bin/python"],
        check=False,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    if found is None:
        assert run.returncode and run.stdout.startswith("error: no Python from 3.11 on found")
    else:
        assert (run.returncode, run.stdout) == (0, f"making .venv with {found}\n")
