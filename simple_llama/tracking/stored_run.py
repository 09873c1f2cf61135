"""Carries out the calls of a journal on one run in the MLflow store.

Each public method of StoredRun is a call: its arguments are JSON, and carrying it out twice has the
same effect as once.
"""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simple_llama.process import file_lock
from simple_llama.tracking.journal import Call, CallRefused, Point
from simple_llama.tracking.store import (
    EVALUATION_ID_TAG,
    EVALUATION_STATUS_TAG,
    LOCAL_ID_TAG,
    Store,
)

MAX_PARAM_CHARACTERS = 6000
"""MLflow's own limit."""
MAX_TAG_CHARACTERS = 8000
"""MLflow's own limit."""
_NOTE = "mlflow.note.content"
"""The tag that MLflow's UI shows as Description."""


class StoredRun:
    """A run in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._client = store.client
        self.run_id: str | None = None
        self.evaluation = False

    def send(self, call: Call) -> None:
        """Carry out one call.

        Raises CallRefused where the store will never accept it, any other exception where it may
        accept it later.
        """
        arguments = {key: value for key, value in call.items() if key != "do"}
        opening = str(call["do"]).startswith("open")
        if self.run_id is None and not opening:
            raise CallRefused("its run was never opened")
        try:
            getattr(self, call["do"])(**arguments)
        except self._store.mlflow.MlflowException as error:
            # opening is retried: a deleted experiment can be restored
            if not opening and error.error_code in (
                "INVALID_PARAMETER_VALUE",
                "RESOURCE_ALREADY_EXISTS",
                "RESOURCE_DOES_NOT_EXIST",
            ):
                raise CallRefused(str(error)) from error
            raise
        except (FileNotFoundError, AttributeError, TypeError, ValueError, KeyError) as error:
            raise CallRefused(f"{type(error).__name__}: {error}") from error

    # opening

    def open(
        self,
        *,
        local_id: str,
        name: str,
        start_time: int,
        tags: dict[str, str],
        claim: dict[str, str],
        params: dict[str, str],
    ) -> None:
        """Continue the run with this local id, or create it. A continued run gets only the tags
        `claim`."""
        known = self._store.find(local_id)
        if known is not None:
            self._take(known.info.run_id, claim)
        else:
            self._create(name, start_time, {**tags, LOCAL_ID_TAG: local_id})
        self.params(params)

    def open_evaluation(
        self,
        *,
        run_id: str,
        local_id: str,
        name: str,
        start_time: int,
        tags: dict[str, str],
        claim: dict[str, str],
        params: dict[str, str],
        training_params: dict[str, str],
    ) -> None:
        """Continue run_id with an evaluation, or create a run for the evaluation.

        A run has at most one evaluation. A second one, or one whose training's run is gone, gets a
        run of its own with the tag source_run_id and a copy of the training's params
        (training_params if the run is gone).
        """
        self.evaluation = True
        mark = {EVALUATION_STATUS_TAG: "RUNNING", EVALUATION_ID_TAG: local_id}
        # two workers may evaluate one model at once: the lock lets only the first claim the run
        with file_lock(self._store.location.lock):
            mine = self._store.find(local_id)
            source = self._store.find(run_id)
            if mine is None and source is not None and _has_room(source, local_id, params):
                mine = source
            if mine is not None:
                self._take(mine.info.run_id, {**claim, **mark})
            else:
                origins = {"source_run_id": run_id, LOCAL_ID_TAG: local_id}
                self._create(name, start_time, {**tags, **mark, **origins})
                self.params({**(source.data.params if source else training_params), **params})
                return
        self.params(params)

    def _take(self, run_id: str, tags: dict[str, str]) -> None:
        self.tags(tags, run_id)
        self._client.update_run(run_id, status="RUNNING")
        self.run_id = run_id

    def _create(self, name: str, start_time: int, tags: dict[str, str]) -> None:
        run = self._client.create_run(
            self._store.experiment_id, start_time, _cut(tags, MAX_TAG_CHARACTERS), run_name=name
        )
        self.run_id = run.info.run_id

    # while it runs

    def points(self, points: Sequence[Point]) -> None:
        metric = self._store.mlflow.entities.Metric
        self._client.log_batch(self.run_id, metrics=[metric(*point) for point in points])

    def params(self, params: dict[str, str]) -> None:
        """Add params. MLflow does not overwrite params, so one that the run has with another value
        becomes the tag changed.NAME."""
        param = self._store.mlflow.entities.Param
        known = self._client.get_run(self.run_id).data.params
        wanted = _cut(params, MAX_PARAM_CHARACTERS)
        entries = [param(key, value) for key, value in wanted.items() if key not in known]
        for i in range(0, len(entries), 100):
            self._client.log_batch(self.run_id, params=entries[i : i + 100])
        changed = {k: v for k, v in wanted.items() if known.get(k, v) != v}
        if changed:
            self.tags({f"changed.{key}": value for key, value in changed.items()})

    def tags(self, tags: dict[str, str], run_id: str | None = None) -> None:
        tag = self._store.mlflow.entities.RunTag
        entries = [tag(key, value) for key, value in _cut(tags, MAX_TAG_CHARACTERS).items()]
        self._client.log_batch(run_id or self.run_id, tags=entries)

    def text(self, text: str, file: str) -> None:
        """Write a text artifact. Surrogates are written as the bytes that they stand for."""
        folder, _, name = file.rpartition("/")
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary, name)
            path.write_bytes(text.encode(errors="surrogateescape"))
            self._client.log_artifact(self.run_id, str(path), folder or None)

    def table(self, rows: list[dict[str, Any]], file: str) -> None:
        """Write a table artifact in the form that MLflow's Evaluation view reads."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        data = [[row.get(column) for column in columns] for row in rows]
        self.text(json.dumps({"columns": columns, "data": data}, ensure_ascii=False), file)
        tag = "mlflow.loggedArtifacts"
        known = json.loads(self._client.get_run(self.run_id).data.tags.get(tag, "[]"))
        entry = {"path": file, "type": "table"}
        if entry not in known:
            self._client.set_tag(self.run_id, tag, json.dumps([*known, entry]))

    def files(self, path: str, folder: str | None) -> None:
        """Copy a file, or the contents of a folder, into an artifact folder."""
        if Path(path).is_dir():
            self._client.log_artifacts(self.run_id, path, folder)
        else:
            self._client.log_artifact(self.run_id, path, folder)

    def dataset(
        self, name: str, digest: str, source: str, profile: dict[str, int], context: str
    ) -> None:
        entities = self._store.mlflow.entities
        dataset = entities.Dataset(
            name=name,
            digest=digest[:12],  # short, as it is a column of the UI; MLflow allows 36
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps(profile),
        )
        tag = entities.InputTag("mlflow.data.context", context)
        # MLflow fails if two runs create the same dataset at once
        with file_lock(self._store.location.lock):
            self._client.log_inputs(self.run_id, [entities.DatasetInput(dataset, [tag])])

    def final(self, metrics: dict[str, float], timestamp: int, step: int) -> None:
        """Log metrics of the whole run, and of its model if it has one."""
        metric = self._store.mlflow.entities.Metric
        model_id = self._model_id()
        values = [
            metric(key, value, timestamp, step, model_id=model_id, run_id=self.run_id)
            for key, value in metrics.items()
        ]
        self._client.log_batch(self.run_id, metrics=values)

    def describe(self, text: str) -> None:
        """Set the Description of the run, and of its model if it has one."""
        self.tags({_NOTE: text})
        model_id = self._model_id()
        if model_id:
            self._describe_model(model_id, text)

    def model(self, path: str, step: int) -> None:
        """Copy a model folder to the artifact model/, list it under Models and register it.

        The weights are stored once, with the run. The entry under Models says where they are.
        """
        self.files(path, "model")
        run = self._client.get_run(self.run_id)
        model_id = self._model_id() or self._list_model(run, step)
        with file_lock(self._store.location.lock):
            if not self._versions():
                self._register_model(run, model_id)
        self._describe_model(model_id, run.data.tags.get(_NOTE, ""))

    def _model_id(self) -> str | None:
        listed = self._client.get_run(self.run_id).outputs.model_outputs
        return str(listed[0].model_id) if listed else None

    def _versions(self) -> Any:
        return self._client.search_model_versions(f"run_id = '{self.run_id}'")

    def _list_model(self, run: Any, step: int) -> str:
        model = self._client.create_logged_model(
            run.info.experiment_id,
            run.info.run_name,
            self.run_id,
            params=run.data.params,
            model_type="llama",
        )
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "README.md").write_text(self._whereabouts(), encoding="utf-8")
            self._client.log_model_artifacts(model.model_id, folder)
        self._client.finalize_logged_model(model.model_id, "READY")
        output = self._store.mlflow.entities.LoggedModelOutput(model.model_id, step)
        self._client.log_outputs(self.run_id, [output])
        return str(model.model_id)

    def _whereabouts(self) -> str:
        return (
            f"The model is the artifact `model/` of run {self.run_id}:\n\n"
            f"    mlflow artifacts download --run-id {self.run_id} --artifact-path model\n"
        )

    def _describe_model(self, model_id: str, text: str) -> None:
        self._client.set_logged_model_tags(model_id, {_NOTE: f"{text}\n\n{self._whereabouts()}"})
        for version in self._versions():
            self._client.update_model_version(version.name, version.version, text)

    def _register_model(self, run: Any, model_id: str) -> None:
        name = model_name(self._store.name)
        try:
            self._client.create_registered_model(name)
        except self._store.mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self._client.create_model_version(
            name, f"{run.info.artifact_uri}/model", self.run_id
        )
        entry = {"name": version.name, "version": version.version}
        self._client.set_logged_model_tags(model_id, {"mlflow.modelVersions": json.dumps([entry])})

    def end(self, status: str, reason: str | None, end_time: int) -> None:
        if self.evaluation:
            self.tags({EVALUATION_STATUS_TAG: status})
        if reason is not None:
            self.tags({"failure": reason})
        elif "failure" in self._client.get_run(self.run_id).data.tags:
            self._client.delete_tag(self.run_id, "failure")
        self._client.set_terminated(self.run_id, status, end_time)


def model_name(experiment: str) -> str:
    """The name of an experiment's registered model; MLflow does not allow / or : in it."""
    return re.sub("[/:]", "_", experiment)


def _has_room(run: Any, local_id: str, params: Mapping[str, str]) -> bool:
    """Whether a run can take the evaluation: it has none, or an unfinished one with the same
    params, since params cannot be overwritten."""
    if run.data.tags.get(EVALUATION_ID_TAG) == local_id:
        return True
    if run.data.tags.get(EVALUATION_STATUS_TAG) in ("RUNNING", "FINISHED"):
        return False
    known = run.data.params
    return all(known.get(key, value) == value for key, value in params.items())


def _cut(values: Mapping[str, str], limit: int) -> dict[str, str]:
    return {k: v if len(v) <= limit else v[: limit - 1] + "…" for k, v in values.items()}
