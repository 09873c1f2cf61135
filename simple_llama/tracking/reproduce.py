"""Prints the commands that reproduce an MLflow run: its code, params and pipeline."""

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
from simple_llama.tracking.origin import PATCH_NOTE_PREFIX
from simple_llama.tracking.store import import_mlflow

PATCH_ARTIFACT = "config/uncommitted.patch"
INPUT_PATH_PARAMS = ("ft_json_path", "tokenizer_path", "model_path", "eval_json_path")
"""Params that are paths of input files."""


def commands(run_id: str) -> list[str]:
    """Shell commands, with comments, that reproduce a run in a new folder.

    Raises InputError where the store does not have the run, or the repository not its commit.
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
    """The commands. Each but the last ends in &&, so that a shell into which they are pasted stops
    at the first failure."""
    tags, run_id = run.data.tags, run.info.run_id
    dirty = " with uncommitted changes" if tags.get("git.dirty") == "true" else ""
    yield f"# {run.info.run_name}, {run.info.status}: commit {commit[:12]}{dirty}"
    yield from _differences(tags)
    folder = f"reproduce-{run_id[:8]}"
    # the project may be a subfolder of the repository
    repository = (_git(location.root, "rev-parse", "--show-toplevel") or "").rstrip("\n")
    project = (_git(location.root, "rev-parse", "--show-prefix") or "").rstrip("\n")
    yield f"git clone --no-checkout -o origin {shlex.quote(repository)} {folder} &&"
    yield f"cd {folder} &&"
    yield f"git fetch origin {commit} &&"
    yield f"git checkout --detach {commit} &&"
    yield from _patch(location, client, run)
    if project:
        yield f"cd {shlex.quote(project)} &&"
    for key in INPUT_PATH_PARAMS:
        path = run.data.params.get(key, "")
        if path.startswith(("data/prepared/", "models/demo/base")):
            continue  # the pipeline writes these
        if _git(location.root, "cat-file", "-e", f"{commit}:./{path}") is None:
            yield f"# git does not hold {key}: copy {path} there, or `dvc pull` it"
    threads = tags.get("torch_threads")
    yield f"OMP_NUM_THREADS={threads} dvc repro" if threads else "dvc repro"


def _patch(location: Location, client: Any, run: Any) -> Iterator[str]:
    """The notes of the recorded patch, and the commands that apply the patch, if it has changes."""
    if not any(
        file.path == PATCH_ARTIFACT for file in client.list_artifacts(run.info.run_id, "config")
    ):
        if run.data.tags.get("git.dirty") == "true":
            yield "# its uncommitted changes were not kept"
        return
    with tempfile.TemporaryDirectory() as temporary:
        kept = Path(
            client.download_artifacts(run.info.run_id, PATCH_ARTIFACT, temporary)
        ).read_bytes()
    lines = kept.decode(errors="replace").split("\n")
    yield from itertools.takewhile(lambda line: line.startswith(PATCH_NOTE_PREFIX), lines)
    if all(line.startswith(PATCH_NOTE_PREFIX) or not line for line in lines):
        return
    apply = "git apply --whitespace=nowarn"  # fails for a patch without changes
    artifacts = urlparse(run.info.artifact_uri)
    if artifacts.scheme == "file":
        yield f"{apply} {shlex.quote(f'{unquote(artifacts.path)}/{PATCH_ARTIFACT}')} &&"
        return
    yield f"export MLFLOW_TRACKING_URI={shlex.quote(location.uri)} &&"
    # the path of the download depends on the store; the last line of the output has it
    download = (
        f"mlflow artifacts download --run-id {run.info.run_id} --artifact-path {PATCH_ARTIFACT}"
    )
    yield f"patch=$({download} -d .git | tail -n 1) &&"
    yield f'{apply} "$patch" &&'


def _differences(tags: dict[str, str]) -> Iterator[str]:
    """Comments on versions and devices that differ from those of the run."""
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
