"""Experiments as people run them: the real dvc and mlflow, sweeps, queues, sharing."""

import csv
import io
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from simple_llama.process import file_lock
from simple_llama.tracking.store import import_mlflow
from tests.support.project import ROOT, Project

pytestmark = pytest.mark.slow
TRAINED = "Running stage 'train'"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose default params have run and are committed."""
    project = Project.make(tmp_path_factory.mktemp("experiments"))
    project.run("dvc", "repro")
    project.commit("ran")
    return project


@pytest.fixture(autouse=True)
def clean(project: Project) -> Iterator[None]:
    """Each test begins and ends with the committed state."""
    yield
    project.run("git", "checkout", "-q", "--force", "main")
    project.run("dvc", "checkout", "-q", "--force", "train", "evaluate")


def runs(project: Project, uri: str | None = None) -> list[Any]:
    """All runs, the oldest first. A store that this process has opened stays open even when it is
    deleted, so a copy is read."""
    if uri is None:
        copy = Path(tempfile.mkdtemp(dir=project.root.parent)) / "mlflow.db"
        shutil.copyfile(project.root / "mlflow.db", copy)
        uri = f"sqlite:///{copy}"
    client = import_mlflow().MlflowClient(uri, uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    found = client.search_runs(experiments, order_by=["attributes.start_time"])
    return list(found)


def run_id(project: Project) -> str:
    return str(project.json("models/run.json")["run_id"])


def model(project: Project) -> str:
    return sha256((project.root / "models/sft/model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("~seed", "Parameters 'seed' are missing from 'params.yaml'"),
        ("max_lr=fast", "params.yaml: max_lr: got 'fast', wanted a finite number"),
        ("max_lr=-1e-5", "params.yaml: max_lr: got -1e-05, wanted above 0"),
        ("+max_lrs=1 max_steps=3", "unknown key 'max_lrs' (did you mean 'max_lr'?)"),
    ],
)
def test_a_wrong_override_is_one_line(project: Project, change: str, said: str) -> None:
    overrides = [word for one in change.split() for word in ("-S", one)]
    output = project.run("dvc", "exp", "run", *overrides, fails=True)
    assert said in output
    assert "Traceback" not in output


def test_a_key_that_dvc_swallows_is_named_by_check(project: Project) -> None:
    output = project.run("dvc", "exp", "run", "-S", "+max_lrs=1")
    assert "Running stage" not in output, "no stage lists the key"
    assert "error: params.yaml: unknown key 'max_lrs'" in project.run(
        "simple-llama", "check", fails=True
    )


def test_the_same_again_comes_from_the_run_cache_and_leads_to_its_run(project: Project) -> None:
    found = {}
    for name, rate in (("a", "1e-5"), ("b", "5e-5"), ("again", "0.00001")):
        said = project.run("dvc", "exp", "run", "-n", name, "-S", f"max_lr={rate}")
        assert (TRAINED in said) == (name != "again")
        found[name] = run_id(project)
        project.run("git", "checkout", "-q", "--", ".")
    assert found["again"] == found["a"] != found["b"]
    stored = {run.info.run_id: run for run in runs(project)}
    assert len(stored) == 3, "the default, a and b"
    for name, value in (("a", 1e-5), ("b", 5e-5)):
        run = stored[found[name]]
        assert run.info.run_name == name
        assert run.data.params["max_lr"] == str(value)
        assert 0 < run.data.metrics["train/lr"] <= value
    table = shown(project)
    assert {"a", "b"} <= {row["Experiment"] for row in table}
    rates = {row["Experiment"]: float(row["max_lr"]) for row in table if row["max_lr"]}
    assert rates["a"] == 1e-5
    project.run("dvc", "exp", "apply", "b")
    assert run_id(project) == found["b"]
    project.run("git", "checkout", "-q", "--", ".")
    project.run("dvc", "exp", "branch", "a", "branch-of-a")
    project.run("git", "checkout", "-q", "branch-of-a")
    project.run("dvc", "checkout", "train")
    assert run_id(project) == found["a"]
    metrics = project.run("dvc", "metrics", "diff", "a", "b", "--targets", "reports/eval.json")
    assert "val_loss" in metrics
    project.run("dvc", "plots", "diff", "main", "b", "-o", "plots")
    page = (project.root / "plots/index.html").read_text()
    assert '"type": "log"' in page
    assert set(re.findall(r'"filename": "(\w+\.csv)"', page)) == {"train.csv", "interval.csv"}


def shown(project: Project) -> list[dict[str, str]]:
    """The table of `make exp`, whose columns people can read."""
    (line,) = re.findall(r"dvc (exp show .*)", (ROOT / "Makefile").read_text())
    words = shlex.split(line.replace("$$", "$"))
    said = project.run("dvc", *words, "--csv")
    table = list(csv.DictReader(io.StringIO(said)))
    assert 3 <= len(table[0]) <= 10, list(table[0])
    assert not re.search(r"[0-9a-f]{32}", said), "no hashes"
    short = [{key.rpartition(":")[2]: value for key, value in row.items()} for row in table]
    return [row | {"Experiment": row["Experiment"] or row["rev"]} for row in short]


def test_a_queue_of_four_makes_four_runs_in_the_main_repository(
    project: Project, tmp_path: Path
) -> None:
    """Both workers start at once where there is no database yet, and under an exported DVC_ROOT of
    another repository."""
    (project.root / "mlflow.db").unlink()
    (tmp_path / ".dvc").mkdir()
    stale = {"DVC_ROOT": str(tmp_path)}
    queued = project.run(
        *("dvc", "exp", "run", "--queue", "-S", "max_lr=3e-4,5e-4", "-S", "batch_size=16,32")
    )
    names = re.findall(r"Queued experiment '([^']+)'", queued)
    assert len(names) == 4
    project.run("dvc", "queue", "start", "-j", "2", env=stale)
    project.run("dvc", "exp", "run", "--run-all", "-j", "2", env=stale)  # waits for a start
    for name in names:  # and these for the ends
        said = project.run("dvc", "queue", "logs", name, "--follow")
        stages = re.findall(r"Running stage '(\w+)'", said)
        assert stages == ["train", "evaluate"], "what the base scored is known"
    found = runs(project)
    assert sorted(run.info.run_name for run in found) == sorted(names)
    assert {run.info.status for run in found} == {"FINISHED"}
    assert {(r.data.params["max_lr"], r.data.params["batch_size"]) for r in found} == {
        (rate, size) for rate in ("0.0003", "0.0005") for size in ("16", "32")
    }
    for run in found:
        place = Path(run.info.artifact_uri.removeprefix("file://"))
        assert place.is_relative_to(project.root / "mlruns")
        assert (place / "model/model.safetensors").is_file()
        assert "eval_val_loss" in run.data.metrics
    assert not list(tmp_path.glob("mlflow.db"))


def test_a_team_shares_a_server_runs_here_and_reproduces_there(
    project: Project, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)],
        cwd=tmp_path,
        env={**project.environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert server.stderr is not None
    for line in server.stderr:
        if "startup complete" in line:
            break
    before = len(runs(project))
    try:
        project.run(
            *("dvc", "exp", "run", "--temp", "-n", "far", "-S", "max_lr=7e-4"),
            env={"MLFLOW_TRACKING_URI": uri},
        )
        (run,) = runs(project, uri)
        client = import_mlflow().MlflowClient(uri, uri)
        client.download_artifacts(run.info.run_id, "report.html", str(tmp_path))
        again = reproduced(project, tmp_path, run.info.run_id, {"MLFLOW_TRACKING_URI": uri})
    finally:
        server.kill()
        server.wait()
        server.stderr.close()
        subprocess.run(["pkill", "-9", "-s", str(server.pid)], check=False)
    assert run.info.artifact_uri.startswith("mlflow-artifacts:"), "behind the server"
    assert again == project.run("git", "show", f"{experiment(project, 'far')}:reports/eval.json")
    assert (run.info.run_name, run.info.status) == ("far", "FINISHED")
    assert "eval_val_loss" in run.data.metrics
    assert len(runs(project)) == before, "nothing in the local store"


def reproduced(project: Project, folder: Path, run_id: str, env: dict[str, str]) -> str:
    """reports/eval.json of a run that another clone makes again."""
    other = Project(folder / "other")
    project.run("git", "clone", "-q", str(project.root), str(other.root))
    script = folder / "commands.sh"
    script.write_text(other.run("simple-llama", "reproduce", run_id, env=env))
    other.run("bash", "-e", str(script), env=env)
    (again,) = folder.rglob("reproduce-*/reports/eval.json")
    return again.read_text()


def experiment(project: Project, name: str) -> str:
    """The commit of an experiment."""
    refs = project.run("git", "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps")
    (commit,) = [ref.split()[0] for ref in refs.splitlines() if ref.endswith(f"/{name}")]
    return commit


def test_an_evaluation_whose_database_is_gone_opens_a_new_run(project: Project) -> None:
    old = run_id(project)
    (project.root / "mlflow.db").unlink(missing_ok=True)
    stage = project.root / "stages/evaluate.py"
    stage.write_text(stage.read_text() + "TOUCHED = True\n")
    said = project.run("dvc", "repro")
    assert TRAINED not in said
    assert "Running stage 'evaluate'" in said
    (run,) = runs(project)
    assert run.info.run_id != old
    assert run.data.tags["source_run_id"] == old
    assert run.info.status == "FINISHED"
    assert "eval_val_loss" in run.data.metrics
    assert run.data.params["max_lr"] == "0.003"


def test_a_run_is_reproduced_by_the_commands_it_gives(project: Project, tmp_path: Path) -> None:
    """From its id alone, in another folder: the commit, the changes on top of it, the params."""
    params = project.root / "params.yaml"
    params.write_text(params.read_text().replace("max_lr: 0.003", "max_lr: 0.002"))
    project.run("dvc", "repro")
    expected, made = (project.root / "reports/eval.json").read_bytes(), run_id(project)
    commands = project.run("simple-llama", "reproduce", made)
    assert "with uncommitted changes" in commands.splitlines()[0]
    script = tmp_path / "commands.sh"
    script.write_text(commands)
    done = subprocess.run(
        ["bash", "-e", str(script)],
        cwd=tmp_path,
        env=project.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert TRAINED in done.stdout
    (again,) = tmp_path.glob("reproduce-*/reports/eval.json")
    assert again.read_bytes() == expected


def test_make_gc_removes_the_files_of_runs_that_were_deleted(project: Project) -> None:
    recipe = re.search(r"^gc:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    project.call("stages.train")
    kept = run_id(project)
    for _ in range(2):  # the second opens a run of its own
        project.call("stages.evaluate")
    deleted = runs(project)[-1].info.run_id
    assert deleted != kept
    import_mlflow().MlflowClient(f"sqlite:///{project.root}/mlflow.db").delete_run(deleted)
    old = project.root / ".resume" / "old"
    old.mkdir(parents=True)
    os.utime(old, (0, 0))
    for line in recipe[1].replace("\\\n", "").replace("$(RUN)", "").splitlines():
        project.run("bash", "-c", line.strip("\t@ ").replace("$$", "$"))
    place = project.root / "mlruns/simple_llama"
    assert not [path for path in (place / deleted).rglob("*") if path.is_file()]
    assert (place / kept / "artifacts/model/model.safetensors").is_file()
    assert not old.exists()
    assert model(project), "what the workspace needs is kept"


@pytest.mark.parametrize("which", ["0" * 32, "nonsense", "../x"])
def test_a_run_that_is_not_there_cannot_be_reproduced(project: Project, which: str) -> None:
    said = project.call("simple-llama", "reproduce", which, fails=True)
    assert said.startswith("error: ")
    assert f"knows no run '{which}'" in said
    assert len(said.splitlines()) == 1


def test_a_second_process_with_the_same_training_waits_and_goes_on(project: Project) -> None:
    (key,) = list((project.root / ".locks").glob("train-*.lock"))[:1]
    for lock in (project.root / ".locks").glob("train-*.lock"):
        lock.unlink()
    project.call("stages.train")
    (key,) = (project.root / ".locks").glob("train-*.lock")
    with file_lock(key):
        second = subprocess.Popen(
            [sys.executable, "-m", "stages.train"],
            cwd=project.root,
            env=project.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert second.stderr is not None
        lines = iter(second.stderr.readline, "")
        said = next(line for line in lines if line.startswith("note: "))
    assert "another run of this training: waiting for process" in said
    assert second.wait() == 0, "and then it went on"
    second.stderr.close()


def test_a_colleague_gets_model_and_reports_without_training(
    project: Project, tmp_path: Path
) -> None:
    """dvc push and pull, repro --pull, and experiments through a bare git repository."""
    bare, store = tmp_path / "bare.git", tmp_path / "store"
    project.run("git", "clone", "-q", "--bare", str(project.root), str(bare))
    project.run("git", "remote", "add", "origin", str(bare))
    project.run("dvc", "remote", "add", "-d", "store", str(store))
    project.run("git", "commit", "-qam", "a remote")
    project.run("git", "push", "-q", "origin", "main")
    project.run("dvc", "push", "-q")
    project.run("dvc", "exp", "run", "-n", "shared", "-S", "max_lr=0.004")
    shared, default = model(project), None
    project.run("dvc", "exp", "push", "-q", "origin", "shared")

    colleague = Project(tmp_path / "colleague")
    project.run("git", "clone", "-q", str(bare), str(colleague.root))
    colleague.run("dvc", "pull", "-q")
    default = model(colleague)
    assert default != shared
    assert "Data and pipelines are up to date" in colleague.run("dvc", "status")
    colleague.run("dvc", "exp", "pull", "-q", "origin", "shared")
    colleague.run("dvc", "exp", "apply", "shared")
    assert model(colleague) == shared
    assert colleague.json("reports/train.json")["steps"] > 0

    other = Project(tmp_path / "other")
    project.run("git", "clone", "-q", str(bare), str(other.root))
    said = other.run("dvc", "repro", "--pull")
    assert TRAINED not in said
    assert model(other) == default


def test_a_moved_checkout_finds_its_artifacts_again(project: Project) -> None:
    client = import_mlflow().MlflowClient(f"sqlite:///{project.root}/mlflow.db")
    moved = project.root.with_name("moved")
    try:
        project.root.rename(moved)
        said = Project(moved).run("simple-llama", "relocate")
        assert f"{project.root}/mlruns" in said
        again = "nothing to change" in Project(moved).run("simple-llama", "relocate")
        uri = f"sqlite:///{moved}/mlflow.db"
        client = import_mlflow().MlflowClient(uri, uri)
        for run in runs(Project(moved)):
            assert client.list_artifacts(run.info.run_id)
            assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(moved)
        for version in client.search_model_versions():
            assert "/moved/mlruns/" in version.source
    finally:
        moved.rename(project.root)
        project.run("simple-llama", "relocate")
    assert again
