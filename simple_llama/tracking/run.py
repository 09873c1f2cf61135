"""A run as the stages use it: a context manager that opens it and records how it ended."""

import dataclasses
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from simple_llama.errors import Terminated
from simple_llama.params.tracking import TrackingParams
from simple_llama.process import warn
from simple_llama.tracking import origin
from simple_llama.tracking.journal import (
    Call,
    Outbox,
    Spool,
    StoreUnusable,
    milliseconds,
    short_message,
)
from simple_llama.tracking.location import Location
from simple_llama.tracking.store import Store, is_permanent_failure
from simple_llama.tracking.stored_run import StoredRun
from simple_llama.tracking.system import SystemMetrics

SAMPLE_INTERVAL = 5.0
"""Seconds between two samples of the machine's load."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a run was trained or evaluated on, for MLflow's column Dataset."""

    name: str
    digest: str
    """A hash of the contents; MLflow keeps up to 36 characters."""
    source: str
    """The path from which it was read."""
    counts: Mapping[str, int]
    """Name → number: examples, tokens and so on."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Identifies a run for the process that continues it after an interruption."""

    local_id: str
    """An id of our own, known before MLflow assigns one."""
    started: int
    """Milliseconds since 1970."""

    @classmethod
    def new(cls) -> Self:
        return cls(local_id=uuid.uuid4().hex, started=milliseconds())


class Run:
    """One MLflow run. A thread sends what is logged; no method raises because MLflow fails."""

    def __init__(self, settings: TrackingParams, opening: Call) -> None:
        self._settings = settings
        self.identity = Identity(local_id=opening["local_id"], started=opening["start_time"])
        self._location = Location.find()
        self._stored: StoredRun | None = None
        self._step = 0
        self._outbox = Outbox(
            self._send,
            Spool.of(self._location, settings.mlflow_experiment, opening),
            SystemMetrics(),
            sample_interval=SAMPLE_INTERVAL,
            # a continued run numbers its samples as if the first process had kept running
            first_sample=int((milliseconds() - self.identity.started) / 1000 / SAMPLE_INTERVAL),
        )
        self._outbox.put(**opening)
        self._outbox.start()

    def _send(self, call: Call) -> None:
        """Send a call. Connects at the first one, in the thread, because importing mlflow takes
        seconds."""
        if self._stored is None:
            experiment = self._settings.mlflow_experiment
            try:
                store = Store(self._location, experiment)
            except Exception as error:
                if is_permanent_failure(error):
                    raise StoreUnusable(f"{type(error).__name__}: {error}") from error
                raise
            for spool in Spool.orphans(self._location, experiment):
                _replay(spool, StoredRun(store))
            store.mark_dead_runs()
            self._stored = StoredRun(store)
        self._stored.send(call)

    @property
    def id(self) -> str:
        """The run's id in MLflow; the local id, which evaluation_run accepts too, if the store
        could not be reached. Waits until the store has answered or failed.
        """
        self._outbox.wait()
        known = self._stored.run_id if self._stored else None
        return known or self.identity.local_id

    @property
    def writer_cpu_seconds(self) -> float:
        """CPU time of the sending thread so far."""
        return self._outbox.cpu_seconds

    def log(self, step: int, metrics: Mapping[str, float], timestamp: int | None = None) -> None:
        """Log metrics of one step. It takes microseconds, whatever the store does.

        timestamp: milliseconds since 1970, by default now. The same metrics with the same timestamp
        are stored once, however often they are logged.
        """
        self._step = step
        values = ((key, float(value)) for key, value in metrics.items())
        self._outbox.points(step, values, timestamp or milliseconds())

    def log_final(self, metrics: Mapping[str, float], timestamp: int | None = None) -> None:
        """Log metrics of the whole run, at step 0, so that MLflow compares them as bars."""
        values = {key: float(value) for key, value in metrics.items()}
        at = timestamp or milliseconds()
        self._outbox.put("final", metrics=values, timestamp=at, step=0)

    def log_text(self, text: str, file: str) -> None:
        self._outbox.put("text", text=text, file=file)

    def log_table(self, rows: Sequence[Mapping[str, Any]], file: str) -> None:
        """Write a table artifact, a .json file, replacing the previous one."""
        self._outbox.put("table", rows=[dict(row) for row in rows], file=file)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Copy a file into an artifact folder. Returns when it is copied or spooled."""
        self._outbox.put("files", path=str(path.resolve()), folder=folder)
        self._outbox.wait()

    def log_folder(self, path: Path, folder: str | None = None) -> None:
        """Copy the contents of a folder into an artifact folder. Returns when it is copied or
        spooled."""
        self.log_file(path, folder)

    def log_model(self, folder: Path) -> None:
        """If log_checkpoint is set, copy a model folder and register the model.

        Later calls of log_final and describe apply to the model too.
        """
        if self._settings.log_checkpoint:
            self._outbox.put("model", path=str(folder.resolve()), step=self._step)
            self._outbox.wait()

    def log_dataset(self, dataset: Dataset, context: str) -> None:
        values = dataclasses.asdict(dataset)
        values["profile"] = dict(values.pop("counts"))
        self._outbox.put("dataset", **values, context=context)

    def describe(self, text: str) -> None:
        """Set the run's Description in MLflow."""
        self._outbox.put("describe", text=text)

    def tag(self, tags: Mapping[str, str]) -> None:
        self._outbox.put("tags", tags=dict(tags))

    def _end(self, status: str, reason: str | None) -> None:
        self._outbox.close(
            {"do": "end", "status": status, "reason": reason, "end_time": milliseconds()}
        )


def _replay(spool: Spool, stored: StoredRun) -> None:
    """Send the spool of an earlier run. A failure does not stop this run from being sent."""
    try:
        spool.replay(stored.send)
    except Exception as error:
        warn(
            f"what an earlier run left in {spool.folder} can't be sent ({short_message(error)}); "
            "the next run tries again, unless the folder is removed"
        )


@contextmanager
def training_run(
    settings: TrackingParams,
    *,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    dataset: Dataset,
    identity: Identity | None = None,
) -> Iterator[Run]:
    """The run of a training. identity: continue this interrupted run."""
    opening = {"do": "open", **_opening(params, tags), "claim": origin.process_tags()}
    if identity is not None:
        opening |= {"local_id": identity.local_id, "start_time": identity.started}
    with _running(settings, opening) as run:
        run.log_dataset(dataset, "training")
        changes = origin.uncommitted_changes()
        if changes:
            run.log_text(changes, "config/uncommitted.patch")
        yield run


@contextmanager
def evaluation_run(
    settings: TrackingParams,
    run_id: str,
    *,
    params: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
    training_params: Mapping[str, Any] | None = None,
    dataset: Dataset | None = None,
) -> Iterator[Run]:
    """Continue the run of a training with its evaluation.

    If that run already has another evaluation, or is no longer in the database, a new run is made
    and tagged with source_run_id. The training's params are copied to it: from the database, or
    training_params if the run is gone.
    """
    tags = tags or {}
    common = _opening(params, tags)
    code = {f"evaluation.{key}": common["tags"].get(key, "") for key in ("git.commit", "git.dirty")}
    opening = {
        "do": "open_evaluation",
        "run_id": run_id,
        "training_params": _texts(training_params or {}),
        **common,
        "claim": {**origin.process_tags(), **code, **tags},
    }
    with _running(settings, opening) as run:
        if dataset is not None:
            run.log_dataset(dataset, "evaluation")
        yield run


def _opening(params: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, Any]:
    known = {
        **origin.git_tags(),
        **origin.dvc_tags(),
        **origin.environment_tags(),
        **origin.source_tags(),
        **origin.process_tags(),
        **tags,
    }
    return {
        "local_id": uuid.uuid4().hex,
        "name": origin.run_name(known),
        "start_time": milliseconds(),
        "tags": known,
        "params": _texts(params),
    }


@contextmanager
def _running(settings: TrackingParams, opening: Call) -> Iterator[Run]:
    run = Run(settings, opening)
    try:
        yield run
    except BaseException as error:
        run._end(*status_of(error))
        raise
    run._end(*status_of(None))


def status_of(error: BaseException | None) -> tuple[str, str | None]:
    """MLflow's status for a run that ended with `error`, and the reason if it is not FINISHED."""
    if error is None or (isinstance(error, SystemExit) and not error.code):
        return "FINISHED", None
    if isinstance(error, KeyboardInterrupt | Terminated):
        return "KILLED", "SIGTERM" if isinstance(error, Terminated) else "interrupted (Ctrl-C)"
    return "FAILED", f"{type(error).__name__}: {error}"[:1000]


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}
