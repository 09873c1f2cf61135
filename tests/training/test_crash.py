"""A training survives kill -9; `python -m tests.crash --kills 50` is the long form."""

import shutil

import pytest

from tests.crash.campaign import COMMAND, Campaign, fingerprint, hook


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    return Campaign(tmp_path_factory.mktemp("crash"), seed=3)


@pytest.mark.slow
def test_killed_trainings_end_with_the_same_bytes(campaign: Campaign) -> None:
    outcome = campaign.run(kills=3)
    assert outcome.faults == []
    assert outcome.kills == outcome.survived == outcome.identical == 3


@pytest.mark.slow
def test_without_its_resume_state_a_training_says_so_and_the_next_starts_afresh(
    campaign: Campaign,
) -> None:
    project = campaign.copy("vanished")
    mark = campaign.folder / "mark"
    last = campaign.counts["after saving a model"]  # nothing later puts it there again
    vanishing = hook(moment="after saving a model", number=last, victim="state", mark=str(mark))
    said = project.run(*COMMAND, fails=True, env=vanishing)
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "has vanished; the same command trains afresh" in line
    project.run(*COMMAND)
    found, resumed = fingerprint(project)
    assert resumed == 0
    outs = [name for name in found if name.startswith(("models/", "reports/"))]
    assert [found[name] for name in outs] == [campaign.expected[name] for name in outs]
    shutil.rmtree(project.root)


@pytest.mark.slow
def test_killed_before_its_first_state_a_training_keeps_its_run(campaign: Campaign) -> None:
    project = campaign.copy("early")
    mark = str(campaign.folder / "mark")
    early = hook(moment="after validation", number=1, victim="stage", mark=mark)
    project.run(*COMMAND, fails=True, env=early)
    project.run(*COMMAND)
    found, resumed = fingerprint(project)
    assert resumed == 0
    assert found == campaign.expected
    shutil.rmtree(project.root)


@pytest.mark.slow
def test_a_killed_experiment_continues_when_it_is_run_again(campaign: Campaign) -> None:
    """In another of DVC's temporary folders: the state is kept by what is trained, not where."""
    project = campaign.copy("experiment")
    command = ("dvc", "exp", "run", "--temp", "-S", "max_lr=0.002", "train")
    mark = str(campaign.folder / "mark")
    interrupting = hook(moment="after update", number=12, victim="interrupt", mark=mark)
    said = project.run(*command, fails=True, env=interrupting)
    assert "note: training stops; the same command continues after step" in said
    assert "Traceback" not in said
    assert fingerprint(project)[0]["runs and their status"] == [("KILLED",)]
    killing = hook(moment="after update", number=5, victim="stage", mark=mark)
    assert "continuing after step" in project.run(*command, fails=True, env=killing)
    assert "continuing after step" in project.run(*command)
    found, resumed = fingerprint(project)
    assert resumed == 2
    assert found["runs and their status"] == [("FINISHED",)]
    assert found["steps of tokens_per_second"] == [(step,) for step in range(1, 31)]
    shutil.rmtree(project.root)
