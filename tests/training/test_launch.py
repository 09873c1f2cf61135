"""Stages on several devices and machines: started by torchrun's agent, ended together."""

import socket
from pathlib import Path

import pytest

from tests.crash.campaign import fingerprint, hook
from tests.support.project import Project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project.make(tmp_path_factory.mktemp("project"))
    project.set(
        num_devices=2, shard="full", precision="fp32", sample_prompts=0, resume_interval=0.05
    )
    project.run("dvc", "repro", "tokenize")
    return project


def errors(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
def test_a_killed_rank_ends_all_and_they_continue_on_two_machines(
    project: Project, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    killing = hook(moment="after update", number=4, victim="stage", rank="1", mark=str(mark))
    said = project.run("python", "-m", "stages.train", fails=True, env=killing)
    assert mark.exists()
    (line,) = errors(said)
    assert "error: rank 1 (process " in line and "is gone: killed, or crashed" in line
    assert "Traceback" not in said
    assert fingerprint(project)[0]["runs and their status"] == [("FAILED",)]

    project.set(num_devices=1)
    (line,) = errors(project.run("python", "-m", "stages.train", fails=True))
    assert "was begun by 2 ranks and is continued by 1: wanted as many" in line

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"PET_NNODES": "2", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port}
    second = project.start(
        "python",
        "-m",
        "stages.train",
        output=tmp_path / "said",
        env=meeting | {"PET_NODE_RANK": "1"},
    )
    said = project.run("dvc", "repro", "train", env=meeting | {"PET_NODE_RANK": "0"})
    assert second.wait() == 0
    assert "continuing after step" in said and "2 ranks, shard: full" in said
    assert (tmp_path / "said").read_text() == "", "only rank 0 speaks"
    found, resumed = fingerprint(project)
    assert resumed == 1
    assert found["runs and their status"] == [("FINISHED",)]
    steps = project.json("reports/train.json")["steps"]
    assert found["steps of tokens_per_second"] == [(step,) for step in range(1, steps + 1)]
    assert (project.root / "models/sft/model.safetensors").stat().st_size > 0
