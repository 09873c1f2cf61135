"""Where the store is: one database and one artifact folder for every checkout of a repository.

DVC runs queued and --temp experiments in throwaway copies under .dvc/tmp/exps; what they log has
to outlive them, so everything is placed by the main repository's root.
"""

import fcntl
import hashlib
import os
import re
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DATABASE = "mlflow.db"
ARTIFACTS = "mlruns"
LOCKS = ".locks"
SPOOL = ".mlflow-spool"


def main_root() -> Path:
    """The root of the main repository, also from within one of DVC's temporary copies of it.

    DVC_ROOT is believed only where it can be true: DVC sets it for its stages, but one exported
    in a shell long ago would send the runs of every other repository to the wrong store.
    """
    here = Path.cwd().resolve()
    told = os.environ.get("DVC_ROOT")
    if told:
        root = Path(told).resolve()
        if (root / ".dvc").is_dir() and here.is_relative_to(root):
            return _outside_experiments(root)
    here = _outside_experiments(here)
    return next((p for p in (here, *here.parents) if (p / ".dvc").is_dir()), here)


def _outside_experiments(path: Path) -> Path:
    parts = path.parts
    for i in range(len(parts) - 2):
        if parts[i : i + 3] == (".dvc", "tmp", "exps"):
            return Path(*parts[:i])
    return path


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the exclusive lock `path`, waiting for it; the system frees it when a process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Location:
    """One tracking store and the folders of this repository that serve it."""

    root: Path
    """The main repository."""
    uri: str
    """The tracking URI as MLflow reads it."""
    artifacts: str | None
    """Where experiments keep their artifacts; None: the server decides."""

    @classmethod
    def find(cls) -> "Location":
        """MLFLOW_TRACKING_URI where it is set, else mlflow.db under the main root."""
        root = main_root()
        uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or f"sqlite:///{root / DATABASE}"
        scheme = uri.partition(":")[0]
        if scheme in ("http", "https", "databricks", "databricks-uc", "uc"):
            return cls(root, uri, None)
        # left to itself, MLflow puts both below the working directory, which a temporary
        # experiment takes with it when it goes
        database = uri.removeprefix("sqlite:///")
        if database == uri:
            return cls(root, uri, (root / ARTIFACTS).as_uri())
        path = root / database
        return cls(root, f"sqlite:///{path}", (path.parent / ARTIFACTS).as_uri())

    def artifacts_of(self, experiment: str) -> str | None:
        """The artifact folder of an experiment; None: the server decides."""
        name = re.sub(r"[^\w.-]+", "_", experiment)
        return f"{self.artifacts}/{urllib.parse.quote(name)}" if self.artifacts else None

    def spool_name(self, experiment: str) -> str:
        """Tells stores and experiments apart, without the password that a URI may hold."""
        return hashlib.sha256(f"{self.uri} {experiment}".encode()).hexdigest()[:12]

    @property
    def spool(self) -> Path:
        return self.root / SPOOL

    @property
    def lock(self) -> Path:
        """The lock under which databases and experiments are made and runs are claimed."""
        return self.root / LOCKS / "mlflow.lock"
