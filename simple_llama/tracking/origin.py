"""Describes the origin of a run as tags: commit, experiment, environment and process."""

import getpass
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from simple_llama.process import process_start_time, warn

MAX_PATCH_CHARACTERS = 1_000_000
"""Uncommitted changes are recorded up to this length."""
PATCH_NOTE_PREFIX = "# "
"""The start of each line of notes before a recorded patch."""

# without the files that the stages themselves write
_INPUTS = (".", ":(exclude)reports", ":(exclude,glob)**/dvc.lock")


# a plumbing command, because `git diff` depends on the user's colours, prefixes and diff programs
_PATCH = (
    *("diff-index", "--patch", "HEAD", "--binary", "--full-index", "--unified=3"),
    *("--no-color", "--no-ext-diff", "--no-textconv", "--no-renames"),
    *("--src-prefix=a/", "--dst-prefix=b/", "--ignore-submodules=dirty"),
)


class GitError(Exception):
    """Git failed; the message is what it printed, in one line."""


def _git(*arguments: str) -> str:
    """The output of a git command; bytes that are not UTF-8 become surrogates. Settings for diffs
    in the environment are ignored. Raises GitError."""
    overrides = ("GIT_DIFF_OPTS", "GIT_EXTERNAL_DIFF")
    environment = {k: v for k, v in os.environ.items() if k not in overrides}
    try:
        done = subprocess.run(
            ["git", *arguments], check=False, capture_output=True, timeout=30, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GitError(str(error)) from None
    if done.returncode != 0:
        raise GitError(" ".join(done.stderr.decode(errors="replace").split()))
    # not text=True, which would change line ends within a patch
    return done.stdout.decode(errors="surrogateescape")


def _in_repository() -> bool:
    here = Path.cwd()
    return any((folder / ".git").exists() for folder in (here, *here.parents))


def git_tags() -> dict[str, str]:
    """Commit, branch, and whether the working tree differs from the commit; {} outside a git
    repository.

    If git fails (the repository belongs to another user, or has no commit), git.failure says why.
    """
    if not _in_repository():
        return {}
    try:
        commit = _git("rev-parse", "--verify", "HEAD").strip()
        branch = _git("branch", "--show-current").strip() or "(detached)"
        changes = _git("status", "--porcelain", "--untracked-files=normal", "--", *_INPUTS)
    except GitError as error:
        warn(f"the run is kept without commit and patch, so it can't be reproduced: {error}")
        return {"git.failure": str(error)}
    return {
        "git.commit": commit,
        "git.branch": branch,
        "git.dirty": str(bool(changes)).lower(),
        "mlflow.source.git.commit": commit,
        "mlflow.source.git.branch": branch,
    }


def uncommitted_changes() -> str:
    """A patch from the commit to the working tree, at most MAX_PATCH_CHARACTERS long.

    It includes binary files and does not depend on git's configuration. Lines of notes come first:
    they name untracked files, or say that the patch is cut or that git failed.
    """
    if not _in_repository():
        return ""
    try:
        patch = _git(*_PATCH, "--", *_INPUTS)
        untracked = _git("ls-files", "--others", "--exclude-standard", "--", *_INPUTS)
    except GitError as error:
        return f"{PATCH_NOTE_PREFIX}the changes are not known: {error}\n"
    notes = "".join(
        f"{PATCH_NOTE_PREFIX}untracked, not in this patch: {name}\n"
        for name in untracked.splitlines()
    )
    if len(patch) > MAX_PATCH_CHARACTERS:
        notes += f"{PATCH_NOTE_PREFIX}cut: the whole patch has {len(patch)} characters\n"
    return notes + patch[:MAX_PATCH_CHARACTERS]


def dvc_tags() -> dict[str, str]:
    """Names of the DVC experiment and stage, where DVC sets them."""
    told = {
        "dvc.exp_name": os.environ.get("DVC_EXP_NAME"),
        "dvc.baseline_rev": os.environ.get("DVC_EXP_BASELINE_REV"),
        "dvc.stage": os.environ.get("DVC_STAGE"),
    }
    return {key: value for key, value in told.items() if value}


def environment_tags() -> dict[str, str]:
    """Versions of Python and of packages that results depend on, and the machine."""
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
    """Tags for MLflow's own columns User and Source."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # in a container the user may have no name
        user = str(os.getuid())
    entry = Path(sys.argv[0])
    # argv[0] is "-m" while `python -m` is still looking for the module
    name = entry.name if len(entry.parts) < 2 else "/".join(entry.parts[-2:])
    return {"mlflow.user": user, "mlflow.source.name": name, "mlflow.source.type": "LOCAL"}


def process_tags() -> dict[str, str]:
    """Identifies the process that writes the run, so that a later process can tell whether it is
    still alive."""
    pid = os.getpid()
    return {
        "process.host": platform.node(),
        "process.machine": _read("/etc/machine-id"),
        "process.boot": _read("/proc/sys/kernel/random/boot_id"),
        "process.namespace": _pid_namespace(),
        "process.pid": str(pid),
        "process.started": process_start_time(pid) or "",
    }


def is_dead(tags: Mapping[str, str]) -> bool:
    """Whether the process that wrote these tags has certainly ended.

    This is known for a process of the same machine and PID namespace, and for one that this machine
    ran before its last boot. Containers may share a host name and a store, and each has its own
    process 1, so an id from another namespace says nothing.
    """
    here = process_tags()

    def same(*names: str) -> bool:
        return all(tags.get(f"process.{name}") == here[f"process.{name}"] for name in names)

    if not tags.get("process.pid", "").isdigit() or not same("host", "machine", "namespace"):
        return False
    if not same("boot"):
        return bool(here["process.machine"]) and here["process.namespace"] == _FIRST_NAMESPACE
    return process_start_time(int(tags["process.pid"])) != tags.get("process.started")


_FIRST_NAMESPACE = "pid:[4026531836]"
"""Linux's number for the initial PID namespace, outside all containers (PROC_PID_INIT_INO)."""


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:  # only Linux has namespaces
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def run_name(tags: Mapping[str, str]) -> str:
    """The name of the DVC experiment, else branch and short commit."""
    if "dvc.exp_name" in tags:
        return tags["dvc.exp_name"]
    if "git.commit" in tags:
        return f"{tags['git.branch']}-{tags['git.commit'][:7]}"
    return "run"
