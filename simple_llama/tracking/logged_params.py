"""Which params MLflow holds for a run's training, and which for its evaluation."""

from typing import Any

from simple_llama.params.evaluate import EvaluateParams
from simple_llama.params.reading import Params


def training_values(params: Params) -> dict[str, Any]:
    return params.without(EvaluateParams)


def evaluation_values(params: Params) -> dict[str, Any]:
    """Those that do not belong to the training: with others a run has another evaluation."""
    before = training_values(params)
    return {key: value for key, value in params.values.items() if key not in before}
