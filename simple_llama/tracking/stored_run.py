"""One run in the store, reached through calls.

Every public method of StoredRun is a call that a journal can hold: its arguments are JSON, and
sending it twice leaves the store as sending it once.
"""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simple_llama.process import file_lock
from simple_llama.tracking.journal import Call, Point, Refused
from simple_llama.tracking.store import EVALUATION, EVALUATION_ID, LOCAL_ID, Store

PARAM_LIMIT = 6000
"""Characters of a param's value, MLflow's own limit."""
TAG_LIMIT = 8000
"""Characters of a tag's value, MLflow's own limit."""
_NOTE = "mlflow.note.content"
"""The tag that the UI shows as Description."""


class StoredRun:
    """A run in the store, reached through calls."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._client = store.client
        self.run_id: str | None = None
        self.evaluation = False

    def send(self, call: Call) -> None:
        """Carry out one call.

        Raises Refused where the store will never take it, anything else where it may later.
        """
        arguments = {key: value for key, value in call.items() if key != "do"}
        opening = str(call["do"]).startswith("open")
        if self.run_id is None and not opening:
            raise Refused("its run was never opened")
        try:
            getattr(self, call["do"])(**arguments)
        except self._store.mlflow.MlflowException as error:
            # an experiment that was deleted can be restored
            if not opening and error.error_code in (
                "INVALID_PARAMETER_VALUE",
                "RESOURCE_ALREADY_EXISTS",
                "RESOURCE_DOES_NOT_EXIST",
            ):
                raise Refused(str(error)) from error
            raise
        except (FileNotFoundError, AttributeError, TypeError, ValueError, KeyError) as error:
            raise Refused(f"{type(error).__name__}: {error}") from error

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
        """Continue the run with this local id (it gets the tags `claim` only), or create it."""
        known = self._store.find(local_id)
        if known is not None:
            self._take(known.info.run_id, claim)
        else:
            self._create(name, start_time, {**tags, LOCAL_ID: local_id})
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
        """Continue run_id with an evaluation, or open a run for it that names run_id.

        A run holds one evaluation: another that begins, or a database that no longer knows the
        run, gets a run of its own, with the training's params copied (training_params where the
        database knows none).
        """
        self.evaluation = True
        mark = {EVALUATION: "RUNNING", EVALUATION_ID: local_id}
        # two workers may evaluate one model at once: the first has claimed it when the next looks
        with file_lock(self._store.location.lock):
            mine = self._store.find(local_id)
            source = self._store.find(run_id)
            if mine is None and source is not None and _has_room(source, local_id, params):
                mine = source
            if mine is not None:
                self._take(mine.info.run_id, {**claim, **mark})
            else:
                origins = {"source_run_id": run_id, LOCAL_ID: local_id}
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
            self._store.experiment_id, start_time, _cut(tags, TAG_LIMIT), run_name=name
        )
        self.run_id = run.info.run_id

    # while it runs

    def points(self, points: Sequence[Point]) -> None:
        metric = self._store.mlflow.entities.Metric
        self._client.log_batch(self.run_id, metrics=[metric(*point) for point in points])

    def params(self, params: dict[str, str]) -> None:
        """Params that the run lacks; one that it holds with another value, which can't be
        overwritten, becomes the tag changed.NAME."""
        param = self._store.mlflow.entities.Param
        known = self._client.get_run(self.run_id).data.params
        wanted = _cut(params, PARAM_LIMIT)
        entries = [param(key, value) for key, value in wanted.items() if key not in known]
        for i in range(0, len(entries), 100):
            self._client.log_batch(self.run_id, params=entries[i : i + 100])
        changed = {k: v for k, v in wanted.items() if known.get(k, v) != v}
        if changed:
            self.tags({f"changed.{key}": value for key, value in changed.items()})

    def tags(self, tags: dict[str, str], run_id: str | None = None) -> None:
        tag = self._store.mlflow.entities.RunTag
        entries = [tag(key, value) for key, value in _cut(tags, TAG_LIMIT).items()]
        self._client.log_batch(run_id or self.run_id, tags=entries)

    def text(self, text: str, file: str) -> None:
        """A text file. Surrogates are the bytes that they stand for."""
        folder, _, name = file.rpartition("/")
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary, name)
            path.write_bytes(text.encode(errors="surrogateescape"))
            self._client.log_artifact(self.run_id, str(path), folder or None)

    def table(self, rows: list[dict[str, Any]], file: str) -> None:
        """A table in the form that MLflow's Evaluation view reads."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        data = [[row.get(column) for column in columns] for row in rows]
        self.text(json.dumps({"columns": columns, "data": data}, ensure_ascii=False), file)
        tag = "mlflow.loggedArtifacts"
        known = json.loads(self._client.get_run(self.run_id).data.tags.get(tag, "[]"))
        entry = {"path": file, "type": "table"}
        if entry not in known:
            self._client.set_tag(self.run_id, tag, json.dumps([*known, entry]))

    def files(self, path: str, folder: str | None) -> None:
        """A file into an artifact folder, or what a folder holds."""
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
            digest=digest[:12],  # a column in the UI; MLflow takes at most 36
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps(profile),
        )
        tag = entities.InputTag("mlflow.data.context", context)
        # MLflow fails when two runs make the same new dataset at once
        with file_lock(self._store.location.lock):
            self._client.log_inputs(self.run_id, [entities.DatasetInput(dataset, [tag])])

    def final(self, metrics: dict[str, float], timestamp: int, step: int) -> None:
        """Metrics of the whole run, and of its model where it has logged one."""
        metric = self._store.mlflow.entities.Metric
        model_id = self._model_id()
        values = [
            metric(key, value, timestamp, step, model_id=model_id, run_id=self.run_id)
            for key, value in metrics.items()
        ]
        self._client.log_batch(self.run_id, metrics=values)

    def describe(self, text: str) -> None:
        """The Description of the run, and of its model where it has logged one."""
        self.tags({_NOTE: text})
        model_id = self._model_id()
        if model_id:
            self._describe_model(model_id, text)

    def model(self, path: str, step: int) -> None:
        """A model folder as the artifact model/, in the experiment's Models and registered.

        The weights are stored once, with the run: the entry under Models says where.
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
            self.tags({EVALUATION: status})
        if reason is not None:
            self.tags({"failure": reason})
        elif "failure" in self._client.get_run(self.run_id).data.tags:
            self._client.delete_tag(self.run_id, "failure")
        self._client.set_terminated(self.run_id, status, end_time)


def model_name(experiment: str) -> str:
    """The registered model of an experiment; MLflow allows neither / nor : in it."""
    return re.sub("[/:]", "_", experiment)


def _has_room(run: Any, local_id: str, params: Mapping[str, str]) -> bool:
    """Whether a run can take the evaluation: it holds none but a broken one with the same params.

    (A param can't be changed once it is written.)
    """
    if run.data.tags.get(EVALUATION_ID) == local_id:
        return True
    if run.data.tags.get(EVALUATION) in ("RUNNING", "FINISHED"):
        return False
    known = run.data.params
    return all(known.get(key, value) == value for key, value in params.items())


def _cut(values: Mapping[str, str], limit: int) -> dict[str, str]:
    return {k: v if len(v) <= limit else v[: limit - 1] + "…" for k, v in values.items()}
