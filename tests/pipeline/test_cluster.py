"""The scripts of examples/, as far as they can run without a cluster or a cloud."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.crash.campaign import hook
from tests.support.project import ROOT, Project

SCRIPTS = sorted((ROOT / "examples").glob("*.s*"))


def with_remotes(folder: Path) -> Project:
    """A project whose git and DVC remotes are folders, and whose .venv is the one in use."""
    (folder / "checkout").mkdir()
    project = Project.make(folder / "checkout")
    project.set(resume_interval=0.05)
    project.run("git", "init", "-q", "--bare", str(folder / "origin.git"))
    project.run("git", "remote", "add", "origin", str(folder / "origin.git"))
    project.run("dvc", "remote", "add", "-d", "store", str(folder / "store"))
    project.commit("remotes")
    project.run("git", "push", "-q", "origin", "main")
    install(project.root)
    return project


def install(root: Path) -> None:
    programs = root / ".venv/bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(sys.executable)
    (programs / "activate").write_text(f'export PATH="{Path(sys.executable).parent}:$PATH"\n')
    (root / ".venv/installed").touch()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_each_script_is_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_the_clouds_task_is_bash_in_yaml() -> None:
    task = yaml.safe_load((ROOT / "examples/skypilot.yaml").read_text())
    assert task["resources"]["use_spot"] is True
    assert "bash examples/run_and_push.sh" in task["run"]
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[part], text=True, check=True)


@pytest.mark.slow
def test_a_preempted_job_is_queued_again_continues_and_brings_its_results(tmp_path: Path) -> None:
    project = with_remotes(tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "scontrol").write_text('#!/bin/sh\necho "$@" >> "$CALLED"\n')
    (programs / "scontrol").chmod(0o755)
    pid = tmp_path / "pid"
    job = ("bash", "-c", f"echo $$ > {pid}; exec bash examples/slurm.sbatch")
    env = {
        "PATH": f"{programs}:{project.environment['PATH']}",
        "CALLED": str(tmp_path / "called"),
        "SLURM_JOB_ID": "7",
        "SLURM_SUBMIT_DIR": str(project.root),
    }
    taken = hook(
        moment="after update", number=12, victim="job", pid=str(pid), mark=str(tmp_path / "mark")
    )
    said = project.run(*job, fails=True, env=env | taken)
    assert "the same command continues after step" in said and "queued again" in said
    assert (tmp_path / "called").read_text() == "requeue 7\n"
    said = project.run(*job, env=env)
    assert "continuing after step" in said
    assert (tmp_path / "called").read_text() == "requeue 7\n"

    project.run("git", "clone", "-qb", "main", str(tmp_path / "origin.git"), str(tmp_path / "home"))
    home = Project(tmp_path / "home")
    home.run("dvc", "exp", "pull", "origin", "slurm-7")
    home.run("dvc", "exp", "apply", "slurm-7")
    for name in ("models/sft/model.safetensors", "reports/eval.json"):
        assert (home.root / name).read_bytes() == (project.root / name).read_bytes()


@pytest.mark.slow
def test_without_a_remote_nothing_heavy_runs(tmp_path: Path) -> None:
    project = Project.make(tmp_path)
    install(tmp_path)
    said = project.run("bash", "examples/run_and_push.sh", "a", fails=True)
    assert said.splitlines()[-1].startswith("error: no default DVC remote")
    assert not (tmp_path / "models/sft").exists()
