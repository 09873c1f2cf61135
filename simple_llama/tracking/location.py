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

from simple_llama.process import LOCKS, main_root

DATABASE = "mlflow.db"
ARTIFACTS = "mlruns"
SPOOL = ".mlflow-spool"


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
        told = cls(root, uri, None).database
        if told is None:
            return cls(root, uri, (root / ARTIFACTS).as_uri())
        path = root / told
        return cls(root, f"sqlite:///{path}", (path.parent / ARTIFACTS).as_uri())

    @property
    def database(self) -> Path | None:
        """The SQLite file; None where the store is another."""
        path = self.uri.removeprefix("sqlite:///")
        return Path(path) if path != self.uri else None

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
