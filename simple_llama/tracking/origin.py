"""Where a run comes from: commit, experiment, machine and process, as tags that rebuild it."""

import getpass
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from simple_llama.process import process_start

DIFF_LIMIT = 1_000_000
"""Characters of uncommitted changes that are kept."""

# what the stages themselves write does not change what a run computes
_INPUTS = (".", ":(exclude)reports", ":(exclude,glob)**/dvc.lock")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


def git_tags() -> dict[str, str]:
    """Commit, branch and whether the inputs differ from it; {} outside a git repository."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {}
    branch = _git("branch", "--show-current") or "(detached)"
    dirty = bool(_git("status", "--porcelain", "--", *_INPUTS))
    return {
        "git.commit": commit,
        "git.branch": branch,
        "git.dirty": str(dirty).lower(),
        "mlflow.source.git.commit": commit,
        "mlflow.source.git.branch": branch,
    }


def uncommitted_changes() -> str:
    """A patch from the commit to the working tree, at most DIFF_LIMIT characters.

    Untracked files are named in its first lines, which `git apply` skips.
    """
    patch = _git("diff", "HEAD", "--", *_INPUTS) or ""
    untracked = _git("ls-files", "--others", "--exclude-standard", "--", *_INPUTS) or ""
    notes = "".join(f"# untracked, not in this patch: {name}\n" for name in untracked.splitlines())
    if len(patch) > DIFF_LIMIT:
        notes += f"# cut: the whole patch has {len(patch)} characters\n"
    return (notes + patch[:DIFF_LIMIT] + "\n") if notes or patch else ""


def dvc_tags() -> dict[str, str]:
    """Names that DVC gives an experiment; {} in a plain `dvc repro`."""
    told = {
        "dvc.exp_name": os.environ.get("DVC_EXP_NAME"),
        "dvc.baseline_rev": os.environ.get("DVC_EXP_BASELINE_REV"),
        "dvc.stage": os.environ.get("DVC_STAGE"),
    }
    return {key: value for key, value in told.items() if value}


def environment_tags() -> dict[str, str]:
    """Interpreter, machine and the versions that results depend on."""
    tags = {
        "env.python": platform.python_version(),
        "env.platform": platform.platform(),
        "env.cpu_count": str(os.cpu_count()),
    }
    for package in ("torch", "mlflow", "dvc"):
        try:
            tags[f"env.{package}"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return tags


def source_tags() -> dict[str, str]:
    """What MLflow's own columns User and Source show."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = str(os.getuid())
    entry = Path(sys.argv[0])
    # "-m" stands there while `python -m` is still resolving the module
    name = entry.name if len(entry.parts) < 2 else "/".join(entry.parts[-2:])
    return {"mlflow.user": user, "mlflow.source.name": name, "mlflow.source.type": "LOCAL"}


def process_tags() -> dict[str, str]:
    """Who holds the run: enough for a later process to tell whether it still lives."""
    pid = os.getpid()
    return {
        "process.host": platform.node(),
        "process.pid": str(pid),
        "process.started": process_start(pid) or "",
    }


def is_dead(tags: Mapping[str, str]) -> bool:
    """Whether the process that holds a run ran on this machine and is gone."""
    if tags.get("process.host") != platform.node() or not tags.get("process.pid", "").isdigit():
        return False
    return process_start(int(tags["process.pid"])) != tags.get("process.started")


def run_name(tags: Mapping[str, str]) -> str:
    """The experiment's name, else branch and short commit."""
    if "dvc.exp_name" in tags:
        return tags["dvc.exp_name"]
    if "git.commit" in tags:
        return f"{tags['git.branch']}-{tags['git.commit'][:7]}"
    return "run"
