"""An MLflow store."""

import tempfile
from functools import cache
from pathlib import Path

from simple_llama.tracking.store import import_mlflow

_FOLDER = tempfile.TemporaryDirectory()


@cache
def empty_store() -> Path:
    """A database with MLflow's tables and no runs, to be copied: making it takes seconds."""
    path = Path(_FOLDER.name, "mlflow.db")
    import_mlflow().MlflowClient(f"sqlite:///{path}").search_experiments()
    return path
