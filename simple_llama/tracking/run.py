"""A run as the stages see it: opened, logged to from the training loop, ended truthfully."""

import dataclasses
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from simple_llama.errors import Terminated
from simple_llama.params import TrackingParams
from simple_llama.process import warn
from simple_llama.tracking import origin
from simple_llama.tracking.journal import Call, Hopeless, Outbox, Spool, brief, milliseconds
from simple_llama.tracking.location import Location
from simple_llama.tracking.store import Store, cannot_heal
from simple_llama.tracking.stored_run import StoredRun
from simple_llama.tracking.system import SystemMetrics

SAMPLE_INTERVAL = 5.0
"""Seconds between two samples of the machine's load."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a run was trained or evaluated on, for the Dataset column."""

    name: str
    digest: str
    """Of the contents; MLflow keeps 36 characters."""
    source: str
    """The path it was read from."""
    counts: Mapping[str, int]
    """Examples, tokens and the like, by name."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What makes a run the same one again in the process that continues it."""

    local_id: str
    """The id it had before the store gave it one."""
    started: int
    """Milliseconds since 1970."""

    @classmethod
    def new(cls) -> Self:
        return cls(local_id=uuid.uuid4().hex, started=milliseconds())


class Run:
    """One MLflow run. What it is given is sent by a thread; no method raises for MLflow's sake."""

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
            # a continued run goes on where its first process would now be
            first_sample=int((milliseconds() - self.identity.started) / 1000 / SAMPLE_INTERVAL),
        )
        self._outbox.put(**opening)
        self._outbox.start()

    def _send(self, call: Call) -> None:
        """Connect on the first call, from the thread: importing mlflow takes seconds."""
        if self._stored is None:
            experiment = self._settings.mlflow_experiment
            try:
                store = Store(self._location, experiment)
            except Exception as error:
                if cannot_heal(error):
                    raise Hopeless(f"{type(error).__name__}: {error}") from error
                raise
            for spool in Spool.orphans(self._location, experiment):
                _replay(spool, StoredRun(store))
            store.kill_the_dead()
            self._stored = StoredRun(store)
        self._stored.send(call)

    @property
    def id(self) -> str:
        """The run's id; where the store could not be reached yet, one that evaluation_run knows.

        Waits until the store has answered.
        """
        self._outbox.wait()
        known = self._stored.run_id if self._stored else None
        return known or self.identity.local_id

    @property
    def writer_cpu_seconds(self) -> float:
        """Processor time of the sending thread so far."""
        return self._outbox.cpu_seconds

    def log(self, step: int, metrics: Mapping[str, float], timestamp: int | None = None) -> None:
        """Metrics of one step: microseconds, whatever the store does.

        Logged again with the same timestamp (milliseconds since 1970; None: now) they stand once.
        """
        self._step = step
        values = ((key, float(value)) for key, value in metrics.items())
        self._outbox.points(step, values, timestamp or milliseconds())

    def log_final(self, metrics: Mapping[str, float], timestamp: int | None = None) -> None:
        """Metrics of the whole run. MLflow compares those of step 0 as bars."""
        values = {key: float(value) for key, value in metrics.items()}
        at = timestamp or milliseconds()
        self._outbox.put("final", metrics=values, timestamp=at, step=0)

    def log_text(self, text: str, file: str) -> None:
        self._outbox.put("text", text=text, file=file)

    def log_table(self, rows: Sequence[Mapping[str, Any]], file: str) -> None:
        """Put a table artifact (a .json file) in the place of what it held before."""
        self._outbox.put("table", rows=[dict(row) for row in rows], file=file)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Copy a file into an artifact folder; returns when that is done."""
        self._outbox.put("files", path=str(path.resolve()), folder=folder)
        self._outbox.wait()

    def log_folder(self, path: Path, folder: str | None = None) -> None:
        """Copy what a folder holds into an artifact folder; returns when that is done."""
        self.log_file(path, folder)

    def log_model(self, folder: Path) -> None:
        """Copy a model folder and register it, where log_checkpoint is set.

        What log_final and describe say after it, they say of the model too.
        """
        if self._settings.log_checkpoint:
            self._outbox.put("model", path=str(folder.resolve()), step=self._step)
            self._outbox.wait()

    def log_dataset(self, dataset: Dataset, context: str) -> None:
        values = dataclasses.asdict(dataset)
        values["profile"] = dict(values.pop("counts"))
        self._outbox.put("dataset", **values, context=context)

    def describe(self, text: str) -> None:
        """What was trained on what and how it came out, for the run's Description."""
        self._outbox.put("describe", text=text)

    def tag(self, tags: Mapping[str, str]) -> None:
        self._outbox.put("tags", tags=dict(tags))

    def _end(self, status: str, reason: str | None) -> None:
        self._outbox.close(
            {"do": "end", "status": status, "reason": reason, "end_time": milliseconds()}
        )


def _replay(spool: Spool, stored: StoredRun) -> None:
    """Send what another run left. That it fails is no reason to keep this run's from the store."""
    try:
        spool.replay(stored.send)
    except Exception as error:
        warn(
            f"what an earlier run left in {spool.folder} can't be sent ({brief(error)}); "
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
    """A run for a training; identity: continue that one, which was interrupted."""
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
    """Continue a training's run with its evaluation.

    If it already holds another evaluation, or the database lost it: a new run tagged with
    source_run_id, to which the training's params are copied (training_params where the database
    no longer knows them).
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
    """MLflow's status of a run that ended so, and the reason where it is not FINISHED."""
    if error is None or (isinstance(error, SystemExit) and not error.code):
        return "FINISHED", None
    if isinstance(error, KeyboardInterrupt | Terminated):
        return "KILLED", "SIGTERM" if isinstance(error, Terminated) else "interrupted (Ctrl-C)"
    return "FAILED", f"{type(error).__name__}: {error}"[:1000]


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}
