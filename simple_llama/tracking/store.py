"""Opens the MLflow store and finds runs in it. Imports mlflow only when it is used."""

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from simple_llama.errors import InputError
from simple_llama.process import file_lock
from simple_llama.tracking import origin
from simple_llama.tracking.location import Location, other_checkout_artifacts, sqlite_uri

LOCAL_ID_TAG = "local_id"
"""A run's id of our own, known before MLflow assigns one."""
EVALUATION_STATUS_TAG = "evaluation"
"""The status of a run's evaluation: RUNNING, FINISHED, FAILED or KILLED."""
EVALUATION_ID_TAG = "evaluation.id"
"""The local id of that evaluation."""

_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # calls are retried from the spool; MLflow's own 7 retries would take minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}

# without this tag, MLflow's UI may take the experiment for a GenAI application and hide models and
# charts; the UI of 3.17 ignores it and obeys only the address (workflowType), as in `make ui`
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


def import_mlflow() -> Any:
    """Import mlflow with telemetry and messages off, unless the user's environment sets them."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    # an enclosing MLflow job may set its own model; it is not the model of this run
    for name in ("MLFLOW_ACTIVE_MODEL_ID", "_MLFLOW_ACTIVE_MODEL_ID"):
        os.environ.pop(name, None)
    import mlflow

    # a new database logs dozens of migrations
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return mlflow


def is_permanent_failure(error: Exception) -> bool:
    """Whether the store will keep failing until the user acts: a driver is missing, a password is
    wrong, or the server is not MLflow."""
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
    """Check that the store opens; returns its name for the user. The first run makes a database
    that does not exist yet.

    Raises InputError with MLflow's message where the store does not open.
    """
    if location.database is not None and not location.database.exists():
        return f"{location.database}, made by the first run"
    mlflow = import_mlflow()
    try:
        client = mlflow.MlflowClient(location.uri, location.uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # database drivers and servers raise errors of many types
        raise InputError(f"MLFLOW_TRACKING_URI: MLflow can't open its store: {error}") from None
    return str(location.database or location.uri.rpartition("@")[2])


class Store:
    """An open tracking store, and one experiment in it."""

    def __init__(self, location: Location, experiment: str) -> None:
        self.mlflow = import_mlflow()
        self.location = location
        self.name = experiment
        # two processes that create a database at once would break it
        with file_lock(location.lock):
            if location.database is not None and not location.database.exists():
                self._make_database(location, location.database)
            self.client = self.mlflow.MlflowClient(location.uri, location.uri)
            found = self.client.get_experiment_by_name(experiment)
            self._check_place(found)
            self.experiment_id: str = found.experiment_id if found else self._create_experiment()

    def _make_database(self, location: Location, path: Path) -> None:
        """Create the database under another name, then rename it: a database whose creation is
        interrupted is unusable."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.new")
        draft.unlink(missing_ok=True)
        draft.touch()  # SQLite itself would create it without group write, whatever the umask
        self.mlflow.MlflowClient(sqlite_uri(draft)).search_experiments()
        # MLflow places its experiment Default below the working directory
        with closing(sqlite3.connect(draft)) as database, database:
            database.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = 0",
                (location.artifacts_of("Default"),),
            )
        os.replace(draft, path)

    def _check_place(self, experiment: Any | None) -> None:
        """Raises InputError where the experiment's artifacts are in another checkout."""
        if experiment is None or self.location.database is None:
            return
        other = other_checkout_artifacts(self.location, experiment.artifact_location)
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
            # another machine may have created it in the meantime
            found = self.client.get_experiment_by_name(self.name)
            if found is None:
                raise
            return str(found.experiment_id)

    def find(self, run_id: str) -> Any | None:
        """The run with this id or local id; None if there is none or it was deleted."""
        try:
            run = self.client.get_run(run_id)
        except self.mlflow.MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            run = self._by_local_id(run_id)
        return None if run is None or run.info.lifecycle_stage == "deleted" else run

    def _by_local_id(self, local_id: str) -> Any | None:
        found = self.client.search_runs(
            [self.experiment_id], f"tags.{LOCAL_ID_TAG} = '{local_id}'", max_results=1
        )
        return found[0] if found else None

    def mark_dead_runs(self) -> None:
        """Set runs to KILLED that are RUNNING although their process on this machine has ended."""
        running = self.client.search_runs(
            [self.experiment_id], "attributes.status = 'RUNNING'", max_results=1000
        )
        for run in running:
            if origin.is_dead(run.data.tags):
                self.client.set_tag(run.info.run_id, "failure", "the process died")
                if run.data.tags.get(EVALUATION_STATUS_TAG) == "RUNNING":
                    self.client.set_tag(run.info.run_id, EVALUATION_STATUS_TAG, "KILLED")
                self.client.set_terminated(run.info.run_id, "KILLED")
