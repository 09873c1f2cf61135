"""The MLflow store: opening it and finding runs in it. mlflow is imported here, and only on use."""

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from simple_llama.errors import InputError
from simple_llama.process import file_lock
from simple_llama.tracking import origin
from simple_llama.tracking.location import Location, foreign_root, sqlite_uri

LOCAL_ID = "local_id"
"""The tag with the id a run had before the store gave it one."""
EVALUATION = "evaluation"
"""The tag that says how far a run's evaluation is: RUNNING, FINISHED, FAILED or KILLED."""
EVALUATION_ID = "evaluation.id"
"""The tag that says which evaluation that is."""

_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # a server that is down is retried from the spool; MLflow's 7 tries take minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}

# else the UI may guess at an application built on language models, and hide models and charts; that
# of 3.17 goes by its address alone (workflowType), which `make ui` prints
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


def import_mlflow() -> Any:
    """mlflow, silent and without telemetry (what the user's environment says comes first)."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    # of a job around this one: its model is none of this run's
    for name in ("MLFLOW_ACTIVE_MODEL_ID", "_MLFLOW_ACTIVE_MODEL_ID"):
        os.environ.pop(name, None)
    import mlflow

    # the dozens of migrations of a new database are no news to anyone
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return mlflow


def cannot_heal(error: Exception) -> bool:
    """Whether a store that fails so will fail until somebody does something about it: a driver is
    missing, a password is wrong, a page answers that is no MLflow."""
    if isinstance(error, ImportError):
        return True
    said = str(error)
    code = getattr(error, "error_code", "")
    return code in _REFUSALS or any(sign in said for sign in _NO_MLFLOW)


_REFUSALS = ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED", "ENDPOINT_NOT_FOUND")
_NO_MLFLOW = (
    "not in a valid JSON format",
    "failed with error code 401",
    "failed with error code 403",
    "failed with error code 404",
)


def check_store(location: Location) -> str:
    """What opened, for a person. A database that is not there yet is made by the first run.

    Raises InputError where the store does not open, whole as MLflow says it.
    """
    if location.database is not None and not location.database.exists():
        return f"{location.database}, made by the first run"
    mlflow = import_mlflow()
    try:
        client = mlflow.MlflowClient(location.uri, location.uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # drivers and servers have errors of their own
        raise InputError(f"MLFLOW_TRACKING_URI: MLflow can't open its store: {error}") from None
    return str(location.database or location.uri.rpartition("@")[2])


class Store:
    """An open tracking store and the experiment in it."""

    def __init__(self, location: Location, experiment: str) -> None:
        self.mlflow = import_mlflow()
        self.location = location
        self.name = experiment
        # a database that is being made by two processes at once breaks
        with file_lock(location.lock):
            if location.database is not None and not location.database.exists():
                self._make_database(location, location.database)
            self.client = self.mlflow.MlflowClient(location.uri, location.uri)
            found = self.client.get_experiment_by_name(experiment)
            self._check_place(found)
            self.experiment_id: str = found.experiment_id if found else self._create_experiment()

    def _make_database(self, location: Location, path: Path) -> None:
        """Make it beside its place: one whose making was killed halfway never works again."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.new")
        draft.unlink(missing_ok=True)
        draft.touch()  # SQLite's own mode keeps the group from writing, whatever the umask
        self.mlflow.MlflowClient(sqlite_uri(draft)).search_experiments()
        # else MLflow's own experiment keeps its artifacts below the working directory
        with closing(sqlite3.connect(draft)) as database, database:
            database.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = 0",
                (location.artifacts_of("Default"),),
            )
        os.replace(draft, path)

    def _check_place(self, experiment: Any | None) -> None:
        """Raises InputError where artifacts would go into another checkout."""
        if experiment is None or self.location.database is None:
            return
        other = foreign_root(self.location, experiment.artifact_location)
        if other is not None:
            raise InputError(
                f"{self.location.database} keeps its artifacts in {other}: this checkout was moved "
                "or copied; `simple-llama relocate` mends that"
            )

    def _create_experiment(self) -> str:
        place = self.location.artifacts_of(self.name)
        try:
            return str(
                self.client.create_experiment(
                    self.name, artifact_location=place, tags=_EXPERIMENT_TAGS
                )
            )
        except self.mlflow.MlflowException:
            # another machine was faster
            found = self.client.get_experiment_by_name(self.name)
            if found is None:
                raise
            return str(found.experiment_id)

    def find(self, run_id: str) -> Any | None:
        """The run with this id, or with this local id; None: neither, or it was deleted."""
        try:
            run = self.client.get_run(run_id)
        except self.mlflow.MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            run = self._by_local_id(run_id)
        return None if run is None or run.info.lifecycle_stage == "deleted" else run

    def _by_local_id(self, local_id: str) -> Any | None:
        found = self.client.search_runs(
            [self.experiment_id], f"tags.{LOCAL_ID} = '{local_id}'", max_results=1
        )
        return found[0] if found else None

    def kill_the_dead(self) -> None:
        """Mark runs KILLED that are RUNNING for a process of this machine that is gone."""
        running = self.client.search_runs(
            [self.experiment_id], "attributes.status = 'RUNNING'", max_results=1000
        )
        for run in running:
            if origin.is_dead(run.data.tags):
                self.client.set_tag(run.info.run_id, "failure", "the process died")
                if run.data.tags.get(EVALUATION) == "RUNNING":
                    self.client.set_tag(run.info.run_id, EVALUATION, "KILLED")
                self.client.set_terminated(run.info.run_id, "KILLED")
