"""Where the store and its artifacts are, whatever a checkout is called, and wherever it goes."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from simple_llama import tracking
from simple_llama.errors import InputError
from simple_llama.params.tracking import TrackingParams
from simple_llama.tracking import location
from simple_llama.tracking.location import Location
from simple_llama.tracking.relocate import ARTIFACT_PATH_COLUMNS, relocate
from simple_llama.tracking.reproduce import commands
from simple_llama.tracking.store import check_store, import_mlflow
from tests.support.store import empty_store

SETTINGS = TrackingParams(mlflow_experiment="sft", log_checkpoint=True)
DATASET = tracking.Dataset(name="d", digest="0", source="d.json", counts={})


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC repository with an empty store as working directory."""
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    # MLflow keeps stores by their URI, and a relative one would be another test's
    monkeypatch.setattr(location, "DATABASE_FILE", f"{tmp_path.name}.db")
    path = tmp_path.resolve() / "checkout"
    (path / ".dvc").mkdir(parents=True)
    shutil.copy(empty_store(), path / location.DATABASE_FILE)
    with closing(sqlite3.connect(path / location.DATABASE_FILE)) as connection, connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ?", (f"{path.as_uri()}/mlruns/Default",)
        )
    monkeypatch.chdir(path)
    return path


def train(identity: tracking.Identity | None = None, **params: Any) -> tracking.Run:
    """A run with one text artifact."""
    values = {"max_lr": 1e-5, **params}
    with tracking.training_run(
        SETTINGS, params=values, tags={}, dataset=DATASET, identity=identity
    ) as run:
        run.log(1, {"loss": 1.0})
        run.log_text("max_lr: 1\n", "config/params.yaml")
        run.id  # noqa: B018 - waits until it is sent
    return run


def client() -> Any:
    return import_mlflow().MlflowClient(Location.find().uri, Location.find().uri)


def text(run: tracking.Run) -> Path:
    uri = client().get_run(run.id).info.artifact_uri
    path = Path(client().download_artifacts(run.id, "config/params.yaml"))
    assert path.read_text() == "max_lr: 1\n"
    return Path(uri.removeprefix("file://"))


# --- names ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a%20b", "what?", "a#b", "100%", "ä b"])
def test_a_checkout_may_be_called_anything(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    odd = checkout.with_name(name)
    checkout.rename(odd)
    monkeypatch.chdir(odd)
    run = train()
    assert client().get_run(run.id).info.status == "FINISHED"
    assert (odd / f"mlruns/sft/{run.id}/artifacts/config/params.yaml").read_text()
    assert os.listdir(odd.parent) == [name], "nothing beside it"
    assert not (odd / ".mlflow-spool").exists()


def test_the_store_of_an_oddly_named_checkout_is_made(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = checkout.with_name("what? 20%20")
    (odd / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(odd)
    run = train()
    assert client().get_run(run.id).info.status == "FINISHED"
    assert (odd / location.DATABASE_FILE).exists()


@pytest.mark.parametrize(
    ("told", "place"),
    [
        ("sqlite:///{root}/sp%20ace/m.db", "sp ace/m.db"),
        ("sqlite:///{root}/m.db?timeout=30", "m.db"),
        ("sqlite+pysqlite:///m.db", "m.db"),
    ],
)
def test_own_uris(checkout: Path, monkeypatch: pytest.MonkeyPatch, told: str, place: str) -> None:
    (checkout / place).parent.mkdir(exist_ok=True)
    shutil.copy(empty_store(), checkout / place)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", told.format(root=checkout))
    run = train()
    assert client().get_run(run.id).info.status == "FINISHED"
    assert Location.find().database == checkout / place


def test_a_temporary_experiment_uses_the_main_repositorys_store(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = checkout / ".dvc/tmp/exps/standalone/tmpabc"
    (copy / ".dvc").mkdir(parents=True)
    shutil.copy(empty_store(), checkout / "m.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///m.db")
    monkeypatch.chdir(copy)
    run = train()
    shutil.rmtree(copy)
    monkeypatch.chdir(checkout)
    assert client().get_run(run.id).info.status == "FINISHED"


# --- what can't heal ------------------------------------------------------------------


@pytest.mark.parametrize(
    "told",
    [
        "./mlruns",
        "file:///tmp/mlruns",
        "file:mlruns",
        "mlflow.db",
        "sqlite:mlflow.db",
        "htp://host",
        "sqlite://",
        "sqlite:///:memory:",
    ],
)
def test_a_uri_that_can_keep_no_run_is_refused_by_name(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", told)
    with pytest.raises(InputError, match=r"^MLFLOW_TRACKING_URI: ") as error:
        train()
    assert repr(told) in str(error.value)
    assert "wanted sqlite:///FILE" in str(error.value)


@pytest.mark.parametrize("code", [401, 403, 404, 200])
def test_a_server_that_will_never_take_runs_is_named_at_once_and_nothing_is_kept(
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(b"<html>Sign in, please</html>")

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        train()
        with pytest.raises(InputError, match="Sign in"):
            check_store(Location.find())
        server.shutdown()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: this run is not tracked: ")
    assert "Sign in, please" in line
    assert not (checkout / ".mlflow-spool").exists()


def test_a_missing_driver_is_named(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg://me:pw@host/db")
    train()
    said = capsys.readouterr().err
    assert "warning: this run is not tracked: ModuleNotFoundError: " in said
    assert "psycopg" in said
    assert "pw@" not in said
    assert not (checkout / ".mlflow-spool").exists()


def test_check_opens_the_store(checkout: Path) -> None:
    assert check_store(Location.find()) == str(checkout / location.DATABASE_FILE)
    (checkout / location.DATABASE_FILE).write_text("no database")
    with pytest.raises(InputError, match="can't open its store"):
        check_store(Location.find())


# --- runs that are continued, and those of others -------------------------------------


def test_the_first_value_of_a_param_stays_and_another_is_a_tag(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(resume_interval=60, ft_json_path="a.json")
    again = train(first.identity, resume_interval=10, ft_json_path="a.json", new="x")
    assert again.id == first.id
    stored = client().get_run(first.id)
    assert stored.info.status == "FINISHED"
    assert stored.data.params["resume_interval"] == "60"
    assert stored.data.params["new"] == "x"
    changed = {k: v for k, v in stored.data.tags.items() if k.startswith("changed.")}
    assert changed == {"changed.resume_interval": "10"}
    assert capsys.readouterr().err == ""


def test_a_spool_that_can_never_be_sent_stops_no_other_run(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Location.find()
    broken = [
        '{"do": "open", "local_id": "it\'s no id"}',
        '{"do": "no such call"}',
        "3",
        "\\xff",
    ]
    for number, calls in enumerate(broken):
        folder = here.spool / f"{here.spool_name('sft')}-0-{number}"
        folder.mkdir(parents=True)
        (folder / "calls.jsonl").write_bytes(calls.encode().decode("unicode_escape").encode("l1"))
    run = train()
    assert client().get_run(run.id).info.status == "FINISHED"
    assert client().get_metric_history(run.id, "loss")
    for line in capsys.readouterr().err.splitlines():
        assert "Traceback" not in line


def test_a_job_around_the_run_has_no_say(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_ACTIVE_MODEL_ID", "m-0123456789abcdef0123456789abcdef")
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    run = train()
    assert client().get_run(run.id).info.status == "FINISHED"
    assert capsys.readouterr().err == ""


# --- checkouts that move --------------------------------------------------------------


def paths(database: Path) -> set[str]:
    with closing(sqlite3.connect(database)) as connection:
        return {
            row[0]
            for table, columns in ARTIFACT_PATH_COLUMNS.items()
            for column in columns
            for row in connection.execute(f"SELECT {column} FROM {table}")
            if row[0]
        }


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_run_of_a_checkout_elsewhere_waits_for_relocate(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    first = train()
    other = checkout.with_name("mlruns") / "o%20ther"
    other.parent.mkdir()
    if how == "moved":
        checkout.rename(other)
    else:
        shutil.copytree(checkout, other)
    monkeypatch.chdir(other)
    before = sorted(checkout.rglob("*"))
    waiting = train()
    said = capsys.readouterr().err
    assert f"keeps its artifacts in {checkout}/mlruns" in said
    assert "`simple-llama relocate` mends that" in said
    assert sorted(checkout.rglob("*")) == before, "nothing is written into the other"
    assert list(relocate()) == [f"{checkout}/mlruns"]
    assert relocate() == {}
    train()
    for run_id in (first.id, waiting.identity.local_id):
        (stored,) = client().search_runs(["1"], f"tags.local_id = '{run_id}'") or [
            client().get_run(run_id)
        ]
        assert stored.info.status == "FINISHED"
        assert client().list_artifacts(stored.info.run_id)
        place = stored.info.artifact_uri
        assert place.startswith((other / "mlruns/sft").as_uri())
    assert sorted(checkout.rglob("*")) == before


def test_relocate_mends_a_checkout_that_has_trained_since_it_was_moved(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train()
    other = checkout.with_name("other")
    shutil.copytree(checkout, other)  # the old folder is there again
    monkeypatch.chdir(other)
    assert relocate()[f"{checkout}/mlruns"] > 0
    assert not [path for path in paths(other / location.DATABASE_FILE) if str(checkout) in path]


def test_relocate_compares_whole_names(checkout: Path) -> None:
    train()
    valid = {
        "/gone/mlruns-x/sft": "a folder that is called otherwise",
        "/gone/x.mlruns/sft": "the same",
        f"file://{checkout}/mlruns/other": "ours",
        "s3://bucket/mlruns/sft": "not a folder",
        "mlflow-artifacts:/mlruns/sft": "a server's",
    }
    with closing(sqlite3.connect(checkout / location.DATABASE_FILE)) as connection, connection:
        for i, place in enumerate(valid, 100):
            connection.execute(
                "INSERT INTO experiments (experiment_id, name, artifact_location, "
                "lifecycle_stage) VALUES (?, ?, ?, 'active')",
                (i, str(i), place),
            )
    before = paths(checkout / location.DATABASE_FILE)
    assert relocate() == {}
    assert paths(checkout / location.DATABASE_FILE) == before >= set(valid)


def test_the_commands_of_a_project_within_a_repository_lead_to_its_folder(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A monorepo, with a changed text, a changed binary file and a user who likes colours."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    (tmp_path / "gitconfig").write_text(
        "[user]\nname = a\nemail = a@b.c\n[color]\nui = always\n[diff]\nnoprefix = true\n"
    )
    for name, content in (("code.py", b"old\r\n"), ("data.bin", b"\0\1")):
        (checkout / name).write_bytes(content)
    (tmp_path / ".gitignore").write_text("*.db\nmlruns/\n.locks/\ngitconfig\n/elsewhere/\n")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    (checkout / "code.py").write_bytes(b"new\r\n")
    (checkout / "data.bin").write_bytes(b"\0\2\3")
    run = train()

    *lines, last = commands(run.id)
    assert last == "dvc repro"
    (tmp_path / "elsewhere").mkdir()
    script = "\n".join([*lines, "pwd"])
    done = subprocess.run(
        ["sh", "-ec", script],
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    assert folder.name == "checkout" and folder != checkout
    assert (folder / "code.py").read_bytes() == b"new\r\n"
    assert (folder / "data.bin").read_bytes() == b"\0\2\3"
