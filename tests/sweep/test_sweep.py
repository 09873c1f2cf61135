"""A search over params: its file, its trials, and that a kill costs none of them."""

import re
import shutil
from pathlib import Path

import optuna
import pytest

from simple_llama.errors import InputError
from simple_llama.params.reading import Params
from simple_llama.sweep import study as study_module
from simple_llama.sweep.picture import _minor_tick, _place
from simple_llama.sweep.ranges import Choice, Interval, Ranges
from simple_llama.sweep.study import sweep
from simple_llama.sweep.trial import TrialFailed, TrialPruned, as_override, run_trial
from simple_llama.tracking.origin import process_tags
from tests.crash.campaign import hook
from tests.support.project import COMMITTED, Project

RANGES = """
trials: 2
params:
  max_lr: {low: 1.0e-3, high: 1.0e-2, log: true}
  batch_size: [8, 16]
"""


def read(text: str, folder: Path) -> Ranges:
    (folder / "sweep.yaml").write_text(text)
    return Ranges.read(folder / "sweep.yaml", Params(COMMITTED))


def test_ranges_have_the_types_of_their_params(tmp_path: Path) -> None:
    ranges = read(
        "trials: 3\nparams: {max_lr: {low: 1, high: 2}, epochs: {low: 1, high: 3}, "
        "packing: [auto, false], lr_schedule: [cosine, linear]}",
        tmp_path,
    )
    assert ranges.trials == 3
    assert ranges.params == {
        "max_lr": Interval(1.0, 2.0, False),
        "epochs": Interval(1, 3, False),
        "packing": Choice(["auto", False]),
        "lr_schedule": Choice(["cosine", "linear"]),
    }
    drawn = {key: one.draw(optuna.create_study().ask(), key) for key, one in ranges.params.items()}
    assert {key: type(value) for key, value in drawn.items()} == {
        "max_lr": float,
        "epochs": int,
        "packing": type(drawn["packing"]),
        "lr_schedule": str,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("params: {epochs: [1]}", "trials: got null"),
        ("trials: 0\nparams: {epochs: [1]}", "trials: got 0, wanted 1 to"),
        ("trials: 3", "params: got null, wanted a range for each param"),
        ("trials: 3\nparam: {epochs: [1]}", "unknown key 'param' (did you mean 'params'?)"),
        ("trials: 3\nparams: {max_lrs: [1]}", "'max_lrs' is none of params.yaml (did you mean"),
        ("trials: 3\nparams: {epochs: []}", "epochs: an empty list"),
        ("trials: 3\nparams: {epochs: [a]}", "epochs: got 'a', wanted an integer"),
        ("trials: 3\nparams: {epochs: {low: 1}}", "epochs: got {'low': 1}, wanted a list"),
        ("trials: 3\nparams: {epochs: {low: 3, high: 1}}", "wanted low below high"),
        ("trials: 3\nparams: {max_lr: {low: 0, high: 1, log: true}}", "above 0 with log: true"),
        ("trials: 3\nparams: {lr_schedule: {low: 0, high: 1}}", "lr_schedule: low: got 0, wanted"),
        ("trials: 3\nparams: {tie: &a [1], b: *a}", "an alias (*) is not read here"),
    ],
)
def test_what_is_no_range_is_named(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(said)) as error:
        read(text, tmp_path)
    assert "sweep.yaml" in str(error.value) and "\n" not in str(error.value)


def fake_dvc(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `dvc` that does what the script says."""
    program = folder / "bin/dvc"
    program.parent.mkdir()
    program.write_text(f"#!/bin/bash\n{script}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def test_a_hopeless_trial_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = tmp_path / "fifo"
    fake_dvc(
        tmp_path,
        f"""echo "$@" > {tmp_path}/called
trap 'echo interrupted > {tmp_path}/end; exit 130' INT
echo 'training: 2,000 steps of up to 16 examples, 1,000 steps an epoch'
echo 'step 1,000: validation loss 0.5000 over all 9 examples'
echo 'step 1,100: validation loss 0.1000 over 4 examples'
echo 'step 2,000: validation loss 0.7500 over all 9 examples'
mkfifo {waits}; read < {waits} 2> /dev/null""",
        monkeypatch,
    )
    asked: list[tuple[int, float]] = []

    def should_continue(epoch: int, loss: float) -> bool:
        asked.append((epoch, loss))
        return len(asked) < 2

    with pytest.raises(TrialPruned):
        run_trial("a-1", {"max_lr": 1e-05, "packing": False}, should_continue)
    assert asked == [(1, 0.5), (2, 0.75)]
    assert (tmp_path / "end").exists()
    called = (tmp_path / "called").read_text()
    assert called == "exp run --temp --force --name a-1 -S max_lr=1e-05 -S packing=false\n"


def here(folder: Path, ranges: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project with a sweep, as far as a study looks at one."""
    (folder / "params.yaml").write_text(COMMITTED.read_text())
    (folder / "dvc.yaml").write_text((COMMITTED.parent / "dvc.yaml").read_text())
    for name in ("simple_llama", "stages"):
        shutil.copytree(COMMITTED.parent / name, folder / name)
    (folder / "sweep.yaml").write_text(ranges)
    (folder / "data/raw").mkdir(parents=True)
    (folder / "data/raw/demo_sft.json").write_text("[]")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(study_module, "main_root", lambda: folder)


@pytest.mark.parametrize(
    "text", ["Be brief, please", "it's \\ so: {a}", "auto", "a=b", "[1]", "q\\", "${x}"]
)
def test_texts_reach_dvc_as_they_are(text: str) -> None:
    """Hydra, which DVC has, would take a comma for a list of experiments."""
    from dvc.utils.hydra import to_hydra_overrides

    [override] = to_hydra_overrides([f"system_prompt={as_override(text)}"])
    assert not override.is_sweep_override()
    assert override.value() == text


def test_failures_in_a_row_end_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_dvc(tmp_path, "echo 'error: no such base'; exit 1", monkeypatch)
    with pytest.raises(TrialFailed, match="error: no such base"):
        run_trial("a-1", {}, lambda epoch, loss: True)
    here(tmp_path, RANGES, monkeypatch)
    with pytest.raises(InputError, match="sweep: 3 trials failed in a row: error: no such base"):
        sweep("sweep.yaml")
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path}/optuna.db")
    assert [trial.state.name for trial in study.trials] == ["FAIL"] * 3


def test_a_killed_trial_is_drawn_again_and_a_pruned_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(tmp_path, RANGES.replace("trials: 2", "trials: 9"), monkeypatch)
    study = optuna.create_study(
        study_name="sweep", storage=f"sqlite:///{tmp_path}/optuna.db", direction="minimize"
    )
    killed = study.ask()
    values = {"max_lr": killed.suggest_float("max_lr", 1e-3, 1e-2, log=True)}
    values["batch_size"] = killed.suggest_categorical("batch_size", [8, 16])
    for key, value in (process_tags() | {"process.started": "long ago"}).items():
        killed.set_user_attr(key, value)
    drawn = []

    def run(name: str, values: dict[str, float], should_continue: object) -> float:
        drawn.append(values)
        assert callable(should_continue)
        loss = float(len(drawn))
        for epoch in (1, 2, 3):
            if not should_continue(epoch, loss):
                raise TrialPruned
        return loss + values["max_lr"]

    monkeypatch.setattr(study_module, "run_trial", run)
    said = sweep("sweep.yaml")
    assert drawn[0] == values
    assert len(drawn) == 9
    states = [trial.state.name for trial in study.trials]
    assert states == ["FAIL", *["COMPLETE"] * 5, *["PRUNED"] * 4]
    assert said.startswith("5 complete, 1 fail, 4 pruned; the best first")
    assert "dvc exp apply sweep-1" in said
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert sweep("sweep.yaml") == said and len(drawn) == 9

    (tmp_path / "sweep.yaml").write_text(RANGES.replace("[8, 16]", "[8, 32]"))
    with pytest.raises(InputError, match=r"its ranges are not those of the study .*batch_size"):
        sweep("sweep.yaml")
    (tmp_path / "sweep.yaml").write_text(RANGES.replace("trials: 2", "trials: 9"))
    for name, text in (
        ("params.yaml", COMMITTED.read_text().replace("epochs: 3", "epochs: 4")),
        ("data/raw/demo_sft.json", "[{}]"),
        ("stages/train.py", "changed"),
    ):
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match="its params, data, models or code are not those of"):
            sweep("sweep.yaml")
        (tmp_path / name).write_text(before)
    assert sweep("sweep.yaml") == said


@pytest.mark.slow
def test_an_interrupted_sweep_continues_its_training(tmp_path: Path) -> None:
    (tmp_path / "checkout").mkdir()
    project = Project.make(tmp_path / "checkout")
    project.set(resume_interval=0.05)
    (project.root / "sweep.yaml").write_text(RANGES)
    project.commit("sweep")
    pid = tmp_path / "pid"
    command = ("bash", "-c", f"echo $$ > {pid}; exec simple-llama sweep sweep.yaml")
    interrupting = hook(
        moment="after update", number=12, victim="job", pid=str(pid), mark=str(tmp_path / "mark")
    )
    said = project.run(*command, fails=True, env=interrupting)
    assert "the same command continues after step" in said and "Traceback" not in said
    said = project.run(*command)
    assert "continuing after step" in said
    assert "2 complete, 1 fail; the best first" in said
    table = dict(re.findall(r"^(sweep-\d) +(\d\.\d{4}) ", said, re.M))
    assert len(table) == 2 and list(table.values()) == sorted(table.values())
    for name, loss in table.items():
        shown = project.run("git", "show", f"{exp_ref(project, name)}:reports/eval.json")
        assert f'"val_loss": {loss[:5]}' in shown
    assert (project.root / "optuna.db").exists()
    assert project.run("git", "status", "--porcelain") == "?? sweep.png\n"


def exp_ref(project: Project, name: str) -> str:
    refs = project.run("git", "for-each-ref", "--format=%(refname)", "refs/exps")
    [ref] = [ref for ref in refs.splitlines() if ref.endswith(f"/{name}")]
    return ref


def test_the_picture_takes_no_value_for_a_formula_and_writes_rates_one_way() -> None:
    assert _place("a$x_1$\u202eb") == r"a\$x_1\$<U+202E>b"
    assert [_place(value) for value in (True, 16, 0.5)] == ["True", 16, 0.5]
    rates = (2e-4, 3e-4, 5e-3, 0.02, 20.0)
    assert [_minor_tick(True, x, 0) for x in rates] == ["2e-4", "", "5e-3", "0.02", "20"]
    assert _minor_tick(False, 2e-4, 0) == ""
