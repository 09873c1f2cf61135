"""Finds the MLflow store: one database and one artifact folder for all checkouts of a repository.

DVC runs queued and --temp experiments in temporary copies under .dvc/tmp/exps. Their runs must
outlive these copies, so all paths are relative to the root of the main repository.
"""

import hashlib
import os
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from simple_llama.errors import InputError
from simple_llama.process import LOCKS, main_root

DATABASE_FILE = "mlflow.db"
ARTIFACT_FOLDER = "mlruns"
SPOOL_FOLDER = ".mlflow-spool"


SERVER_SCHEMES = ("http", "https", "databricks", "databricks-uc", "uc")
DATABASE_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")
"""Schemes of a tracking URI: tracking servers, and databases that MLflow supports."""


@dataclass(frozen=True)
class Location:
    """A tracking store, and the folders of this repository that belong to it."""

    root: Path
    """The root of the main repository."""
    uri: str
    """The tracking URI for MLflow."""
    artifacts: str | None
    """URI of the folder of all artifacts; None if the server chooses it."""
    database: Path | None = None
    """The SQLite file; None for another kind of store."""

    @classmethod
    def find(cls) -> "Location":
        """The store at MLFLOW_TRACKING_URI if it is set, else mlflow.db in the main repository.

        Raises InputError where the URI has no kind of store that MLflow supports.
        """
        root = main_root()
        told = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
        if not told:
            return cls._sqlite(root, root / DATABASE_FILE)
        scheme = told.partition(":")[0]
        if scheme in SERVER_SCHEMES:
            return cls(root, told, None)
        kind = scheme.partition("+")[0]
        _, found, rest = told.partition("://")
        if kind not in DATABASE_SCHEMES or not found:
            raise InputError(
                f"MLFLOW_TRACKING_URI: {told!r} is not a store that MLflow supports, wanted "
                "sqlite:///FILE, postgresql://..., http://... or nothing"
            )
        if kind != "sqlite":
            return cls(root, told, (root / ARTIFACT_FOLDER).as_uri())
        name, _, query = rest.removeprefix("/").partition("?")
        if name in ("", ":memory:"):
            raise InputError(
                f"MLFLOW_TRACKING_URI: {told!r} names no file, wanted sqlite:///FILE "
                "(with four slashes where the path is absolute)"
            )
        # MLflow takes relative paths from the working directory, which for a temporary experiment
        # is deleted when the experiment ends
        return cls._sqlite(root, root / urllib.parse.unquote(name), query)

    @classmethod
    def _sqlite(cls, root: Path, path: Path, query: str = "") -> "Location":
        uri = sqlite_uri(path) + (f"?{query}" if query else "")
        return cls(root, uri, (path.parent / ARTIFACT_FOLDER).as_uri(), path)

    def artifacts_of(self, experiment: str) -> str | None:
        """URI of the artifact folder of an experiment; None if the server chooses it."""
        name = re.sub(r"[^\w.-]+", "_", experiment)
        return f"{self.artifacts}/{urllib.parse.quote(name)}" if self.artifacts else None

    def spool_name(self, experiment: str) -> str:
        """A name that differs for each store and experiment. It is a hash, because the URI may
        contain a password."""
        store = f"sqlite:///{self.database}" if self.database else self.uri
        return hashlib.sha256(f"{store} {experiment}".encode()).hexdigest()[:12]

    @property
    def spool(self) -> Path:
        return self.root / SPOOL_FOLDER

    @property
    def lock(self) -> Path:
        """The lock file to hold while creating databases and experiments and claiming runs."""
        return self.root / LOCKS / "mlflow.lock"


def sqlite_uri(path: Path) -> str:
    """A URI that MLflow, SQLAlchemy and alembic read alike.

    They disagree on the escapes of %, ? and #, so a path with one is written as seen from the
    working directory: a checkout may be called anything.
    """
    return f"sqlite:///{os.path.relpath(path) if set('%?#') & set(str(path)) else path}"


def other_checkout_artifacts(location: Location, place: str | None) -> Path | None:
    """The mlruns folder of another checkout to which an artifact location of this store points.

    It counts if that folder is gone (this checkout was moved), or if the experiment has a folder
    here too (this checkout was copied, or has trained since it was moved). None otherwise.
    """
    path = local_path(place)
    here = local_path(location.artifacts)
    if path is None or here is None or path.parent.name != ARTIFACT_FOLDER or path.parent == here:
        return None
    return path.parent if not path.parent.exists() or (here / path.name).exists() else None


def local_path(uri: str | None) -> Path | None:
    """The path of an artifact URI; None if it is not a local file."""
    parsed = urllib.parse.urlparse(uri or "")
    if parsed.scheme == "file":
        return Path(urllib.parse.unquote(parsed.path))
    return Path(uri) if uri and not parsed.scheme else None
