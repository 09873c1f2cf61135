"""Where the store is: one database and one artifact folder for every checkout of a repository.

DVC runs queued and --temp experiments in throwaway copies under .dvc/tmp/exps; what they log has
to outlive them, so everything is placed by the main repository's root.
"""

import hashlib
import os
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from simple_llama.errors import InputError
from simple_llama.process import LOCKS, main_root

DATABASE = "mlflow.db"
ARTIFACTS = "mlruns"
SPOOL = ".mlflow-spool"


SERVERS = ("http", "https", "databricks", "databricks-uc", "uc")
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
"""The databases that MLflow keeps a store in."""


@dataclass(frozen=True)
class Location:
    """One tracking store and the folders of this repository that serve it."""

    root: Path
    """The main repository."""
    uri: str
    """The tracking URI as MLflow reads it."""
    artifacts: str | None
    """Where experiments keep their artifacts; None: the server decides."""
    database: Path | None = None
    """The SQLite file; None where the store is another."""

    @classmethod
    def find(cls) -> "Location":
        """MLFLOW_TRACKING_URI where it is set, else mlflow.db under the main root.

        Raises InputError where that names no store that MLflow could ever open.
        """
        root = main_root()
        told = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
        if not told:
            return cls._sqlite(root, root / DATABASE)
        scheme = told.partition(":")[0]
        if scheme in SERVERS:
            return cls(root, told, None)
        kind = scheme.partition("+")[0]
        _, found, rest = told.partition("://")
        if kind not in DATABASES or not found:
            raise InputError(
                f"MLFLOW_TRACKING_URI: {told!r} is no store that runs can be kept in, wanted "
                "sqlite:///FILE, postgresql://..., http://... or nothing"
            )
        if kind != "sqlite":
            return cls(root, told, (root / ARTIFACTS).as_uri())
        name, _, query = rest.removeprefix("/").partition("?")
        if name in ("", ":memory:"):
            raise InputError(
                f"MLFLOW_TRACKING_URI: {told!r} names no file, wanted sqlite:///FILE "
                "(with four slashes where the path is absolute)"
            )
        # left to itself, MLflow puts all below the working directory, which a temporary
        # experiment takes with it when it goes
        return cls._sqlite(root, root / urllib.parse.unquote(name), query)

    @classmethod
    def _sqlite(cls, root: Path, path: Path, query: str = "") -> "Location":
        uri = sqlite_uri(path) + (f"?{query}" if query else "")
        return cls(root, uri, (path.parent / ARTIFACTS).as_uri(), path)

    def artifacts_of(self, experiment: str) -> str | None:
        """The artifact folder of an experiment; None: the server decides."""
        name = re.sub(r"[^\w.-]+", "_", experiment)
        return f"{self.artifacts}/{urllib.parse.quote(name)}" if self.artifacts else None

    def spool_name(self, experiment: str) -> str:
        """Tells stores and experiments apart, without the password that a URI may hold."""
        store = f"sqlite:///{self.database}" if self.database else self.uri
        return hashlib.sha256(f"{store} {experiment}".encode()).hexdigest()[:12]

    @property
    def spool(self) -> Path:
        return self.root / SPOOL

    @property
    def lock(self) -> Path:
        """The lock under which databases and experiments are made and runs are claimed."""
        return self.root / LOCKS / "mlflow.lock"


def sqlite_uri(path: Path) -> str:
    """A URI that MLflow, SQLAlchemy and alembic read alike.

    They disagree on the escapes of %, ? and #, so a path with one is written as seen from the
    working directory: a checkout may be called anything.
    """
    return f"sqlite:///{os.path.relpath(path) if set('%?#') & set(str(path)) else path}"


def foreign_root(location: Location, place: str | None) -> Path | None:
    """The mlruns folder of another checkout that an experiment of this store keeps its artifacts
    in: one that is gone (the checkout was moved), or one whose experiment is here too (it was
    copied, or has trained since it was moved). None: they are where they should be.
    """
    path = local_path(place)
    here = local_path(location.artifacts)
    if path is None or here is None or path.parent.name != ARTIFACTS or path.parent == here:
        return None
    return path.parent if not path.parent.exists() or (here / path.name).exists() else None


def local_path(uri: str | None) -> Path | None:
    """The path that an artifact's URI names; None: it leads elsewhere."""
    parsed = urllib.parse.urlparse(uri or "")
    if parsed.scheme == "file":
        return Path(urllib.parse.unquote(parsed.path))
    return Path(uri) if uri and not parsed.scheme else None
