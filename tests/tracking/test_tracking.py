"""Tracking never blocks or kills the training, loses nothing, and tells the truth about runs."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from simple_llama import tracking
from simple_llama.errors import Terminated, terminated_by_signal
from simple_llama.params.tracking import TrackingParams
from simple_llama.process import main_root, process_start_time
from simple_llama.tracking import journal, origin, run, store
from simple_llama.tracking.journal import Call, CallRefused, Outbox, Spool
from simple_llama.tracking.location import Location
from simple_llama.tracking.run import status_of
from simple_llama.tracking.stored_run import StoredRun
from tests.support.store import empty_store

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = TrackingParams(mlflow_experiment="try outs/ä", log_checkpoint=True)
DATASET = tracking.Dataset(
    name="demo.json", digest="0123456789abcdef", source="data/demo.json", counts={"num_rows": 7}
)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty DVC repository as working directory, with nothing of the caller's environment."""
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    path = (tmp_path / "a repository").resolve()
    (path / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(path)
    return path


def no_sample() -> dict[str, float]:
    return {}


# --- where the store is ---------------------------------------------------------------


def test_importing_tracking_imports_neither_mlflow_nor_torch() -> None:
    code = "import sys, simple_llama.tracking; print({'mlflow', 'torch'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment) == b"set()\n"


def test_main_root_is_the_repository_around_the_working_directory(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "models").mkdir()
    monkeypatch.chdir(root / "models")
    assert main_root() == root


def test_main_root_of_a_temporary_experiment_is_the_main_repository(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = root / ".dvc/tmp/exps/standalone/tmpabc"
    (copy / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert main_root() == root
    monkeypatch.setenv("DVC_ROOT", str(copy))
    assert main_root() == root
    monkeypatch.setenv("DVC_ROOT", str(root))
    assert main_root() == root


@pytest.mark.parametrize("stale", ["elsewhere", "no longer there", "not a repository"])
def test_a_stale_dvc_root_is_not_believed(
    root: Path, monkeypatch: pytest.MonkeyPatch, stale: str
) -> None:
    other = root.parent / stale
    if stale == "elsewhere":
        (other / ".dvc").mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(root.parent if stale == "not a repository" else other))
    assert main_root() == root


def test_main_root_without_any_repository_is_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain").mkdir()
    monkeypatch.chdir(tmp_path / "plain")
    assert main_root() == (tmp_path / "plain").resolve()


@pytest.mark.parametrize(
    ("told", "uri", "artifacts"),
    [
        ("", "sqlite:///{root}/mlflow.db", "{as_uri}/mlruns"),
        ("sqlite:///sub/x.db", "sqlite:///{root}/sub/x.db", "{as_uri}/sub/mlruns"),
        ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db", "file:///tmp/mlruns"),
        ("http://me:pw@host:5000", "http://me:pw@host:5000", None),
        ("postgresql://me:pw@host/db", "postgresql://me:pw@host/db", "{as_uri}/mlruns"),
    ],
)
def test_location_of_the_store(
    root: Path, monkeypatch: pytest.MonkeyPatch, told: str, uri: str, artifacts: str | None
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", told)
    location = Location.find()
    assert location.uri == uri.format(root=root)
    assert location.artifacts == (artifacts and artifacts.format(as_uri=root.as_uri()))
    assert "pw" not in location.spool_name("x")


# --- where a run comes from -----------------------------------------------------------


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.check_output(["git", *identity, *arguments], text=True).strip()


def committed(root: Path) -> None:
    git("init", "-q", "-b", "main")
    (root / "params.yaml").write_text("max_lr: 1\n")
    (root / "dvc.lock").write_text("a\n")
    git("add", "-A")
    git("commit", "-q", "-m", "first")


def test_tags_and_patch_rebuild_a_dirty_checkout(root: Path) -> None:
    committed(root)
    (root / "params.yaml").write_text("max_lr: 2\n")
    (root / "new.py").write_text("pass\n")
    tags = origin.git_tags()
    assert tags["git.commit"] == tags["mlflow.source.git.commit"] == git("rev-parse", "HEAD")
    assert (tags["git.branch"], tags["git.dirty"]) == ("main", "true")
    assert origin.run_name(tags) == f"main-{tags['git.commit'][:7]}"
    patch = origin.uncommitted_changes()
    assert "# untracked, not in this patch: new.py" in patch
    git("checkout", "-q", "params.yaml")
    subprocess.run(["git", "apply"], input=patch, text=True, check=True)
    assert (root / "params.yaml").read_text() == "max_lr: 2\n"


@pytest.mark.parametrize(
    "setting",
    [
        "color.ui=always",
        "diff.external=true",
        "diff.noprefix=true",
        "diff.mnemonicPrefix=true",
        "diff.context=0",
        "diff.relative=true",
        "diff.renames=copies",
        "diff.orderFile=no-file",
    ],
)
def test_the_patch_is_the_same_whatever_git_is_set_to(root: Path, setting: str) -> None:
    """In a folder of a larger repository, with binary files, foreign encodings and line ends."""
    (root / "project").mkdir()
    os.chdir(root / "project")
    before = {"params.yaml": b"a: 1\r\nb: 2\r\n", "old.bin": b"\0\1", "latin": b"\xe4\n"}
    after = {"params.yaml": b"a: 3\r\nb: 2\r\n", "old.bin": b"\0\2", "latin": b"\xf6\n"}
    for name, content in before.items():
        Path(name).write_bytes(content)
    git("init", "-q", str(root))
    git("add", "-A")
    git("commit", "-q", "-m", "first")
    for name, content in after.items():
        Path(name).write_bytes(content)
    Path("added").write_bytes(b"\0new")
    git("add", "added")
    expected = origin.uncommitted_changes()
    git("config", *setting.split("="))
    assert origin.uncommitted_changes() == expected
    git("reset", "-q", "--hard")
    patch = expected.encode(errors="surrogateescape")
    subprocess.run(["git", "apply"], input=patch, check=True, cwd=root)
    assert {name: Path(name).read_bytes() for name in after} == after
    assert Path("added").read_bytes() == b"\0new"


def test_a_git_that_refuses_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    committed(root)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert "dubious ownership" in origin.git_tags()["git.failure"]
    assert "without commit and patch" in capsys.readouterr().err
    assert origin.uncommitted_changes().startswith("# the changes are not known: fatal: detected")


def test_outputs_of_the_stages_do_not_make_a_checkout_dirty(root: Path) -> None:
    committed(root)
    (root / "dvc.lock").write_text("b\n")
    (root / "reports").mkdir()
    (root / "reports/train.json").write_text("{}")
    assert origin.git_tags()["git.dirty"] == "false"
    assert origin.uncommitted_changes() == ""


def test_a_large_patch_is_cut_and_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed(root)
    monkeypatch.setattr(origin, "MAX_PATCH_CHARACTERS", 50)
    (root / "params.yaml").write_text("max_lr: 2\n" * 100)
    assert origin.uncommitted_changes().startswith("# cut: the whole patch has ")


def test_outside_git_a_run_has_no_commit(root: Path) -> None:
    assert origin.git_tags() == {}
    assert origin.uncommitted_changes() == ""


def test_a_run_is_named_after_its_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "sandy-pots")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "abc")
    tags = origin.dvc_tags()
    assert (tags["dvc.exp_name"], tags["dvc.baseline_rev"]) == ("sandy-pots", "abc")
    assert origin.run_name({**tags, "git.commit": "0" * 40, "git.branch": "x"}) == "sandy-pots"


def test_who_is_dead() -> None:
    alive = origin.process_tags()
    assert not origin.is_dead(alive)
    assert origin.is_dead({**alive, "process.started": "1"}), "the id was reused"
    assert not origin.is_dead({**alive, "process.host": "another", "process.pid": "1"})
    contained = {**alive, "process.namespace": "pid:[7]", "process.started": "1"}
    assert not origin.is_dead(contained), "another container's ids"
    assert not origin.is_dead({**contained, "process.boot": "another"})
    assert not origin.is_dead({**alive, "process.machine": "another", "process.started": "1"})
    assert not origin.is_dead({})
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_start_time(child.pid) is None, "a zombie does not live"
    child.wait()
    assert origin.is_dead({**alive, "process.pid": str(child.pid)})


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (None, "FINISHED", None),
        (SystemExit(0), "FINISHED", None),
        (SystemExit("error: no data"), "FAILED", "SystemExit: error: no data"),
        (ValueError("bad"), "FAILED", "ValueError: bad"),
        (KeyboardInterrupt(), "KILLED", "interrupted (Ctrl-C)"),
        (Terminated(), "KILLED", "SIGTERM"),
    ],
)
def test_status_of_an_end(error: BaseException | None, status: str, reason: str | None) -> None:
    assert status_of(error) == (status, reason)


# --- the way to the store -------------------------------------------------------------


def opened(local_id: str = "abc") -> Call:
    return {"do": "open", "local_id": local_id}


def test_spool_keeps_calls_and_files_in_order_and_replays_them_once(root: Path) -> None:
    spool = Spool(root / "spool", opened())
    report = root / "report.html"
    report.write_text("as it was")
    (root / "model").mkdir()
    (root / "model/weights").write_text("1")
    assert not spool
    spool.append({"do": "points", "points": [["loss", float("inf"), 1, 2]]})
    spool.append({"do": "files", "path": str(report), "folder": None})
    spool.append({"do": "model", "path": str(root / "model"), "step": 3})
    report.write_text("overwritten since")
    shutil.rmtree(root / "model")
    sent: list[Call] = []
    spool.replay(lambda call: sent.append({**call, "read": read(call)}))

    assert [call["do"] for call in sent] == ["open", "points", "files", "model"]
    assert sent[1]["points"] == [["loss", float("inf"), 1, 2]]
    assert sent[2]["read"] == "as it was"
    assert Path(sent[2]["path"]).name == "report.html"
    assert sent[3]["read"] == "1"
    assert not spool
    assert not spool.folder.exists()


def read(call: Call) -> str | None:
    path = Path(call["path"]) if "path" in call else None
    if path is None:
        return None
    return (path / "weights" if path.is_dir() else path).read_text()


def test_a_replay_that_fails_keeps_the_opening_and_the_rest(root: Path) -> None:
    spool = Spool(root / "spool", opened())
    for step in range(4):
        spool.append({"do": "points", "points": [["loss", 0.5, 1, step]]})

    def send(call: Call) -> None:
        if call["do"] == "points" and call["points"][0][3] == 2:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        spool.replay(send)
    sent: list[Call] = []
    spool.replay(sent.append)
    assert [call.get("points", [[0, 0, 0, "open"]])[0][3] for call in sent] == ["open", 2, 3]


def test_a_refused_call_is_named_and_does_not_stop_the_others(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spool = Spool(root / "spool", opened())
    spool.append({"do": "params", "params": {}})
    spool.append({"do": "end"})
    sent: list[str] = []

    def send(call: Call) -> None:
        if call["do"] == "params":
            raise CallRefused("max_lr was 1")
        sent.append(call["do"])

    spool.replay(send)
    assert sent == ["open", "end"]
    assert capsys.readouterr().err == "warning: MLflow refused 'params': max_lr was 1\n"


def test_only_the_spools_of_the_dead_are_replayed(root: Path) -> None:
    location = Location.find()
    mine = Spool.of(location, "x", opened("mine"))
    mine.append(opened("mine"))
    assert list(Spool.orphans(location, "x")) == [], "its writer lives and holds the lock"
    mine.release()
    assert [spool.folder for spool in Spool.orphans(location, "x")] == [mine.folder]
    assert list(Spool.orphans(location, "another experiment")) == []


def test_half_a_last_line_is_left_out(root: Path) -> None:
    spool = Spool(root / "spool", opened())
    spool.append(opened())
    with open(spool.journal, "a") as file:
        file.write('{"do": "poi')
    sent: list[Call] = []
    spool.replay(sent.append)
    assert sent == [opened()]


def outbox(send: Callable[[Call], None], root: Path) -> Outbox:
    box = Outbox(send, Spool(root / "spool", opened()), no_sample, sample_interval=60)
    box.start()
    return box


def test_logging_does_not_wait_for_the_store(root: Path) -> None:
    answer, asked = threading.Event(), threading.Event()
    sent: list[Call] = []

    def send(call: Call) -> None:
        asked.set()
        assert answer.wait(60)
        sent.append(call)

    box = outbox(send, root)
    box.put("open")
    box._wake.set()
    assert asked.wait(60)
    for step in range(2500):
        box.points(step, iter([("loss", 0.5)]), 1000 + step)
    assert sent == [], "2,500 steps went by while the store kept its first answer"
    answer.set()
    box.close({"do": "end"})
    assert [call["do"] for call in sent] == ["open", "points", "points", "points", "end"]
    assert max(len(call["points"]) for call in sent[1:4]) <= journal.MAX_POINTS_PER_REQUEST
    assert [p[3] for call in sent[1:4] for p in call["points"]] == list(range(2500))


def test_a_failing_store_gets_everything_later_with_the_original_times(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    down = True
    sent: list[Call] = []

    def send(call: Call) -> None:
        if down and call["do"] == "points":
            raise ConnectionError("no route")
        sent.append(call)

    box = outbox(send, root)
    box.put("open")
    box.points(1, iter([("loss", 0.5)]), 1234)
    box.wait()
    box.put("text", text="x", file="y")
    box.wait()
    assert [call["do"] for call in sent] == ["open"], "order is kept"
    down = False
    box.close({"do": "end"})
    assert [call["do"] for call in sent] == ["open", "open", "points", "text", "end"]
    assert sent[2]["points"] == [["loss", 0.5, 1234, 1]]
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: MLflow failed (ConnectionError: no route); the work goes on")
    assert second.startswith("note: MLflow answers again")


def test_even_a_disk_without_room_does_not_stop_the_work(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "spool").write_text("a file where the folder should be")

    def send(call: Call) -> None:
        raise ConnectionError

    box = outbox(send, root)
    box.put("open")
    box.close({"do": "end"})
    assert "is lost" in capsys.readouterr().err


# --- with the real MLflow -------------------------------------------------------------


@pytest.fixture
def database(root: Path) -> Path:
    shutil.copy(empty_store(), root / "mlflow.db")
    return root / "mlflow.db"


@pytest.fixture
def client(root: Path) -> Any:
    return store.import_mlflow().MlflowClient(Location.find().uri, Location.find().uri)


def train(**settings: Any) -> Any:
    return tracking.training_run(
        SETTINGS, params={"max_lr": 1e-05, **settings}, tags={"data.digest": "d"}, dataset=DATASET
    )


def history(client: Any, run_id: str, key: str = "loss") -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run_id, key)]


def artifacts(client: Any, run_id: str, folder: str | None = None) -> set[str]:
    return {entry.path for entry in client.list_artifacts(run_id, folder)}


@pytest.fixture
def model(root: Path) -> Path:
    folder = root / "models/sft"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.mark.slow
def test_a_run_from_training_to_evaluation(
    root: Path, database: Path, client: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed(root)
    (root / "params.yaml").write_text("max_lr: 1e-05\n")
    monkeypatch.setenv("DVC_EXP_NAME", "sandy")
    with train(limit=float("inf"), text="x" * 7000) as run:
        run.log_text("max_lr: 1e-05\n", "config/params.yaml")
        for step in range(1, 1501):
            run.log(step, {"loss": 1 / step, "odd": float("inf") if step == 1 else 0.0})
        rows = [{"step": 1, "answer": "ä"}, {"step": 2, "answer": "b", "more": 1}]
        run.log_table(rows[:1], "samples.json")
        run.log_table(rows, "samples.json")
        run.log_file(root / "params.yaml", "curves")
        run.log_model(model)
        run.describe("Two lines.")
        run.log_final({"val_loss": 0.25})
        run_id = run.id
    stored = client.get_run(run_id)
    assert (stored.info.status, stored.info.run_name) == ("FINISHED", "sandy")
    assert stored.data.params["max_lr"] == "1e-05"
    assert stored.data.params["limit"] == "inf"
    assert len(stored.data.params["text"]) == 6000
    assert history(client, run_id) == [(step, 1 / step) for step in range(1, 1501)]
    assert history(client, run_id, "odd")[0][1] > 1e300
    assert history(client, run_id, "val_loss") == [(0, 0.25)]
    assert history(client, run_id, "system/system_memory_usage_megabytes"), "a short run's sample"
    tags = stored.data.tags
    assert tags["git.commit"] == tags["mlflow.source.git.commit"] == git("rev-parse", "HEAD")
    assert (tags["git.dirty"], tags["data.digest"]) == ("true", "d")
    assert tags["mlflow.note.content"] == "Two lines."
    (entry,) = stored.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("demo.json", "0123456789ab")
    assert json.loads(entry.dataset.profile) == {"num_rows": 7}
    assert artifacts(client, run_id) == {"config", "curves", "model", "samples.json"}
    assert artifacts(client, run_id, "config") == {
        "config/params.yaml",
        "config/uncommitted.patch",
    }
    table = json.loads(Path(client.download_artifacts(run_id, "samples.json")).read_text())
    assert table == {"columns": ["step", "answer", "more"], "data": [[1, "ä", None], [2, "b", 1]]}
    (version,) = client.search_model_versions("name = 'try outs_ä'")
    fetched = store.import_mlflow().artifacts.download_artifacts(
        artifact_uri=f"models:/{version.name}/{version.version}", tracking_uri=Location.find().uri
    )
    assert Path(fetched, "model.safetensors").read_bytes() == b"weights"
    assert (version.run_id, version.description) == (run_id, "Two lines.")
    listed = client.get_logged_model(stored.outputs.model_outputs[0].model_id)
    assert {metric.key: metric.value for metric in listed.metrics} == {"val_loss": 0.25}
    assert stored.info.artifact_uri.startswith((root / "mlruns").as_uri())

    monkeypatch.delenv("DVC_EXP_NAME")
    with evaluation(run_id) as again:
        again.log_final({"eval/exact_match": 0.5})
        assert again.id == run_id
        assert client.get_run(run_id).info.status == "RUNNING"
    stored = client.get_run(run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.params["exact_match_max_tokens"] == "32"
    assert stored.data.tags["dvc.exp_name"] == "sandy", "the training's origin stays"
    assert stored.data.metrics["eval/exact_match"] == 0.5

    with evaluation(run_id, exact_match_max_tokens=16) as other:
        assert other.id != run_id
    stored = client.get_run(other.id)
    assert stored.data.tags["source_run_id"] == run_id
    assert stored.data.params["max_lr"] == "1e-05", "copied"
    assert stored.data.params["exact_match_max_tokens"] == "16"


def evaluation(run_id: str, **settings: Any) -> Any:
    return tracking.evaluation_run(
        SETTINGS,
        run_id,
        params={"exact_match_max_tokens": 32, **settings},
        tags={},
        training_params={"max_lr": 3e-4},
    )


@pytest.mark.slow
def test_an_evaluation_that_broke_is_repeated_in_the_same_run(database: Path, client: Any) -> None:
    with train() as run:
        run_id = run.id
    with pytest.raises(ZeroDivisionError), evaluation(run_id):
        raise ZeroDivisionError("oops")
    broken = client.get_run(run_id)
    assert broken.info.status == "FAILED"
    assert broken.data.tags["failure"] == "ZeroDivisionError: oops"
    with evaluation(run_id) as again:
        assert again.id == run_id
    mended = client.get_run(run_id)
    assert mended.info.status == "FINISHED"
    assert "failure" not in mended.data.tags


@pytest.mark.slow
def test_an_evaluation_whose_run_the_database_lost_opens_one(database: Path, client: Any) -> None:
    with evaluation("0" * 32) as run:
        run.log_final({"eval/val_loss": 1.0})
        run_id = run.id
    stored = client.get_run(run_id)
    assert stored.data.tags["source_run_id"] == "0" * 32
    assert stored.data.params == {"max_lr": "0.0003", "exact_match_max_tokens": "32"}
    assert stored.info.status == "FINISHED"


@pytest.mark.slow
def test_an_interrupted_training_continues_in_its_run(database: Path, client: Any) -> None:
    with pytest.raises(KeyboardInterrupt), train() as run:
        run.log(1, {"loss": 1.0})
        raise KeyboardInterrupt
    run_id = run.id
    assert client.get_run(run_id).info.status == "KILLED"
    continued = tracking.training_run(
        SETTINGS, params={"max_lr": 1e-05}, tags={}, dataset=DATASET, identity=run.identity
    )
    with continued as run:
        assert run.id == run_id
        run.log(2, {"loss": 0.5})
    assert client.get_run(run_id).info.status == "FINISHED"
    assert history(client, run_id) == [(1, 1.0), (2, 0.5)]


@pytest.mark.slow
def test_statuses_are_true(database: Path, client: Any) -> None:
    def status(run: tracking.Run) -> tuple[str, str | None]:
        stored = client.get_run(run.id)
        return stored.info.status, stored.data.tags.get("failure")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError), train() as run:
        raise ValueError("a non-finite loss")
    assert status(run) == ("FAILED", "ValueError: a non-finite loss")
    with pytest.raises(SystemExit) as ended, terminated_by_signal(), train() as run:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert ended.value.code == 143
    assert status(run) == ("KILLED", "SIGTERM")
    assert signal.getsignal(signal.SIGTERM) == before


KILLED = """
import os, signal, sys
import tests.tracking.test_tracking as t
with t.train() as run:
    import mlflow.telemetry
    run.log(1, {"loss": 1.0})
    print(run.id, mlflow.telemetry.get_telemetry_client(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_killed_run_is_marked_by_the_next_start(root: Path, client: Any) -> None:
    """Also: the newcomer's first run makes the database in silence and without telemetry."""
    outside = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST", "MLFLOW", "DO_NOT_TRACK")) and name != "CI"
    }
    killed = subprocess.run(
        [sys.executable, "-c", KILLED],
        check=False,
        capture_output=True,
        text=True,
        env={**outside, "PYTHONPATH": str(REPOSITORY)},
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run_id, telemetry = killed.stdout.split()
    assert (telemetry, killed.stderr) == ("None", "")
    assert client.get_run(run_id).info.status == "RUNNING"
    with train() as run:
        run.log(1, {"loss": 1.0})
        assert run.id != run_id
        assert client.get_run(run_id).info.status == "KILLED"
        assert client.get_run(run.id).info.status == "RUNNING"


@pytest.mark.slow
def test_two_first_runs_at_once_make_one_database(root: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    tries = [root / f"try {i}" for i in range(2)]
    workers = [context.Process(target=first_runs, args=(tries, barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    for place in tries:
        client = store.import_mlflow().MlflowClient(f"sqlite:///{place}/mlflow.db")
        found = client.get_experiment_by_name(SETTINGS.mlflow_experiment)
        runs = client.search_runs([found.experiment_id])
        assert [run.info.status for run in runs] == ["FINISHED"] * 2
        assert not (place / ".mlflow-spool").exists()


def first_runs(places: list[Path], barrier: Any) -> None:
    store.import_mlflow()
    for place in places:
        (place / ".dvc").mkdir(parents=True, exist_ok=True)
        os.chdir(place)
        barrier.wait()
        with train() as run:
            run.log(1, {"loss": 1.0})


@pytest.mark.slow
def test_a_store_that_fails_midway_gets_each_point_once(
    root: Path,
    database: Path,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store_points = StoredRun.points
    failing = True

    def flaky(self: StoredRun, points: Any) -> None:
        """Stores half of a batch, then fails: as when the connection breaks before the answer."""
        if failing:
            store_points(self, points[: len(points) // 2])
            raise ConnectionError("gone")
        store_points(self, points)

    monkeypatch.setattr(StoredRun, "points", flaky)
    with train() as first:
        for step in range(100):
            first.log(step, {"loss": float(step)})
        run_id = first.id
    assert client.get_run(run_id).info.status == "RUNNING", "its end waits behind the points"
    assert list((root / ".mlflow-spool").iterdir())
    assert "still fails" in capsys.readouterr().err
    failing = False
    with train():
        pass
    assert history(client, run_id) == [(step, float(step)) for step in range(100)]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert list((root / ".mlflow-spool").iterdir()) == []


@pytest.mark.slow
def test_a_run_that_could_not_be_created_is_created_later(
    database: Path, client: Any, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    def fail(*_: Any) -> None:
        raise ConnectionError("down")

    with monkeypatch.context() as patch:
        patch.setattr(run, "Store", fail)
        with train() as first:
            first.log(1, {"loss": 1.0})
            first.log_model(model)
            local_id = first.id
        with evaluation(local_id) as second:
            second.log_final({"eval/val_loss": 0.5})
    shutil.rmtree(model)
    with train() as third:
        experiment = client.get_run(third.id).info.experiment_id
    (stored,) = client.search_runs([experiment], f"tags.local_id = '{local_id}'")
    run_id = stored.info.run_id
    assert stored.info.status == "FINISHED"
    assert stored.data.metrics["eval/val_loss"] == 0.5
    assert stored.data.params["exact_match_max_tokens"] == "32"
    assert history(client, run_id) == [(1, 1.0)]
    assert artifacts(client, run_id, "model") == {"model/config.json", "model/model.safetensors"}
    assert len(client.search_runs([experiment])) == 2


@pytest.fixture
def server(root: Path, database: Path) -> Iterator[Callable[[], "subprocess.Popen[bytes]"]]:
    """Starts `mlflow server` on a port of its own; stopped at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
    started: list[subprocess.Popen[bytes]] = []

    def start() -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{database}", "--port", str(port)]
        command += ["--artifacts-destination", str(root / "served")]
        # without the workers for MLflow's own jobs it starts in half the time
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        log = root / "server.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=output, env=environment, start_new_session=True
            )
        started.append(process)
        while b"startup complete" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.1)
        return process

    yield start
    del os.environ["MLFLOW_TRACKING_URI"]
    for process in started:
        stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_of_a_training(
    root: Path,
    server: Callable[[], "subprocess.Popen[bytes]"],
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    process = server()
    with train() as first:
        first.log(1, {"loss": 1.0})
        run_id = first.id
        stop(process)
        first.log(2, {"loss": 0.5})
        first.log_model(model)
    assert "warning: MLflow failed" in capsys.readouterr().err
    server()
    client = store.import_mlflow().MlflowClient(Location.find().uri, Location.find().uri)
    assert client.get_run(run_id).info.status == "RUNNING"
    with train():
        pass
    assert client.get_run(run_id).info.status == "FINISHED"
    assert history(client, run_id) == [(1, 1.0), (2, 0.5)]
    assert artifacts(client, run_id, "model") == {"model/config.json", "model/model.safetensors"}
    (version,) = client.search_model_versions(f"run_id = '{run_id}'")
    assert version.source.endswith("/artifacts/model")
