"""Adds metrics of a model to its run after the run has ended."""

from collections.abc import Mapping

from simple_llama.errors import InputError
from simple_llama.params.tracking import TrackingParams
from simple_llama.tracking.journal import milliseconds
from simple_llama.tracking.location import Location
from simple_llama.tracking.store import Store


def add_metrics(settings: TrackingParams, run_id: str, metrics: Mapping[str, float]) -> None:
    """Add metrics to a run. Raises InputError where the store does not accept them."""
    location = Location.find()
    try:
        store = Store(location, settings.mlflow_experiment)
        metric, now = store.mlflow.entities.Metric, milliseconds()
        entries = [metric(_name(key), value, now, 0) for key, value in metrics.items()]
        store.client.log_batch(run_id, metrics=entries)
    except Exception as error:
        said = " ".join(str(error).split())
        raise InputError(f"run {run_id}: MLflow does not take its scores: {said}") from None


def _name(key: str) -> str:
    """The metric's name, with characters that MLflow does not allow replaced by _."""
    return "".join(one if one.isalnum() or one in "_-./ " else "_" for one in key)
