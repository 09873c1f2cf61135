"""Where a run comes from: commit, experiment, machine and process, as tags that rebuild it."""

import getpass
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from simple_llama.process import process_start_time, warn

DIFF_LIMIT = 1_000_000
"""Characters of uncommitted changes that are kept."""
NOTE = "# "
"""How the lines before a kept patch begin."""

# what the stages themselves write does not change what a run computes
_INPUTS = (".", ":(exclude)reports", ":(exclude,glob)**/dvc.lock")


# plumbing: `git diff` obeys a user's colours, prefixes, context and external programs
_PATCH = (
    *("diff-index", "--patch", "HEAD", "--binary", "--full-index", "--unified=3"),
    *("--no-color", "--no-ext-diff", "--no-textconv", "--no-renames"),
    *("--src-prefix=a/", "--dst-prefix=b/", "--ignore-submodules=dirty"),
)


class GitError(Exception):
    """What git says it can't do, in one line."""


def _git(*arguments: str) -> str:
    """What git prints, whatever the user's environment says of diffs; bytes that are no UTF-8 are
    surrogates. Raises GitError."""
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
    # not as text, which would change the line ends within a patch
    return done.stdout.decode(errors="surrogateescape")


def _in_repository() -> bool:
    here = Path.cwd()
    return any((folder / ".git").exists() for folder in (here, *here.parents))


def git_tags() -> dict[str, str]:
    """Commit, branch and whether the inputs differ from it; {} outside a git repository.

    Where git refuses (the repository is another user's, it has no commit), git.failure says why.
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
    """A patch from the commit to the working tree, at most DIFF_LIMIT characters.

    It is the same whatever git is configured to show, and holds binary files too. Its first lines
    are notes: they name untracked files, say that it is cut or that git failed.
    """
    if not _in_repository():
        return ""
    try:
        patch = _git(*_PATCH, "--", *_INPUTS)
        untracked = _git("ls-files", "--others", "--exclude-standard", "--", *_INPUTS)
    except GitError as error:
        return f"{NOTE}the changes are not known: {error}\n"
    notes = "".join(
        f"{NOTE}untracked, not in this patch: {name}\n" for name in untracked.splitlines()
    )
    if len(patch) > DIFF_LIMIT:
        notes += f"{NOTE}cut: the whole patch has {len(patch)} characters\n"
    return notes + patch[:DIFF_LIMIT]


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
        "process.machine": _read("/etc/machine-id"),
        "process.boot": _read("/proc/sys/kernel/random/boot_id"),
        "process.namespace": _pid_namespace(),
        "process.pid": str(pid),
        "process.started": process_start_time(pid) or "",
    }


def is_dead(tags: Mapping[str, str]) -> bool:
    """Whether the process that holds a run is gone: known of one whose id means the same here, and
    of one that this machine ran before it was started again.

    Ids are of a namespace: containers may share host name and store, and each have a process 1.
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
"""Linux gives the process ids outside all containers this number (PROC_PID_INIT_INO)."""


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux, no namespaces
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def run_name(tags: Mapping[str, str]) -> str:
    """The experiment's name, else branch and short commit."""
    if "dvc.exp_name" in tags:
        return tags["dvc.exp_name"]
    if "git.commit" in tags:
        return f"{tags['git.branch']}-{tags['git.commit'][:7]}"
    return "run"
