"""From a run in MLflow back to the code, the params and the commands that made it."""

import importlib.metadata
import itertools
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from simple_llama.errors import InputError
from simple_llama.tracking.location import Location
from simple_llama.tracking.origin import NOTE
from simple_llama.tracking.store import import_mlflow

PATCH = "config/uncommitted.patch"
INPUTS = ("ft_json_path", "tokenizer_path", "model_path", "eval_json_path")
"""Params that name files."""


def commands(run_id: str) -> list[str]:
    """The shell commands that rebuild a run in a folder of its own, comments between them.

    Raises InputError where the store does not know the run, or the repository not its commit.
    """
    location = Location.find()
    mlflow = import_mlflow()
    if location.database is not None and not location.database.exists():
        raise InputError(f"{location.database}: no such file, so no runs yet")
    client = mlflow.MlflowClient(location.uri, location.uri)
    try:
        run = client.get_run(run_id)
    except mlflow.MlflowException:
        raise InputError(f"{location.uri} knows no run {run_id!r}") from None
    tags = run.data.tags
    if "git.failure" in tags:
        raise InputError(f"run {run_id} has no commit, git had failed: {tags['git.failure']}")
    commit = tags.get("git.commit")
    if commit is None:
        raise InputError(f"run {run_id} was not started in a git repository")
    if _git(location.root, "cat-file", "-e", f"{commit}^{{commit}}") is None:
        raise InputError(f"{location.root} does not hold commit {commit} of run {run_id}")
    return list(_lines(location, client, run, commit))


def _lines(location: Location, client: Any, run: Any, commit: str) -> Iterator[str]:
    """Each command but the last ends in &&: pasted into a shell, what follows a failure is not
    carried out."""
    tags, run_id = run.data.tags, run.info.run_id
    dirty = " with uncommitted changes" if tags.get("git.dirty") == "true" else ""
    yield f"# {run.info.run_name}, {run.info.status}: commit {commit[:12]}{dirty}"
    yield from _differences(tags)
    folder = f"reproduce-{run_id[:8]}"
    # the project may be a folder of a larger repository
    repository = (_git(location.root, "rev-parse", "--show-toplevel") or "").rstrip("\n")
    project = (_git(location.root, "rev-parse", "--show-prefix") or "").rstrip("\n")
    yield f"git clone --no-checkout -o origin {shlex.quote(repository)} {folder} &&"
    yield f"cd {folder} &&"
    yield f"git fetch origin {commit} &&"
    yield f"git checkout --detach {commit} &&"
    yield from _patch(location, client, run)
    if project:
        yield f"cd {shlex.quote(project)} &&"
    for key in INPUTS:
        path = run.data.params.get(key, "")
        if path.startswith(("data/prepared/", "models/demo/base")):
            continue  # the pipeline makes them
        if _git(location.root, "cat-file", "-e", f"{commit}:./{path}") is None:
            yield f"# git does not hold {key}: copy {path} there, or `dvc pull` it"
    threads = tags.get("torch_threads")
    yield f"OMP_NUM_THREADS={threads} dvc repro" if threads else "dvc repro"


def _patch(location: Location, client: Any, run: Any) -> Iterator[str]:
    """The notes before the kept patch, and what applies the rest of it, if there is any."""
    if not any(file.path == PATCH for file in client.list_artifacts(run.info.run_id, "config")):
        if run.data.tags.get("git.dirty") == "true":
            yield "# its uncommitted changes were not kept"
        return
    with tempfile.TemporaryDirectory() as temporary:
        kept = Path(client.download_artifacts(run.info.run_id, PATCH, temporary)).read_bytes()
    lines = kept.decode(errors="replace").split("\n")
    yield from itertools.takewhile(lambda line: line.startswith(NOTE), lines)
    if all(line.startswith(NOTE) or not line for line in lines):
        return
    apply = "git apply --whitespace=nowarn"  # fails where a patch changes nothing
    artifacts = urlparse(run.info.artifact_uri)
    if artifacts.scheme == "file":
        yield f"{apply} {shlex.quote(f'{unquote(artifacts.path)}/{PATCH}')} &&"
        return
    yield f"export MLFLOW_TRACKING_URI={shlex.quote(location.uri)} &&"
    # where it lands depends on the store; the last line says it
    download = f"mlflow artifacts download --run-id {run.info.run_id} --artifact-path {PATCH}"
    yield f"patch=$({download} -d .git | tail -n 1) &&"
    yield f'{apply} "$patch" &&'


def _differences(tags: dict[str, str]) -> Iterator[str]:
    """What of the environment is another now."""
    for package in ("torch", "dvc", "mlflow"):
        then, now = tags.get(f"env.{package}"), importlib.metadata.version(package)
        if then not in (None, now):
            yield f"# {package} was {then}, here it is {now}"
    if "device" in tags:
        yield f"# trained on {tags['device']} ({tags.get('precision', '')})"


def _git(root: Path, *arguments: str) -> str | None:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else None
