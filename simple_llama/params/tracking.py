"""What MLflow needs of params.yaml; no out of a stage depends on it."""

from dataclasses import dataclass

from simple_llama.strict_yaml import require


@dataclass(frozen=True, kw_only=True)
class TrackingParams:
    mlflow_experiment: str
    log_checkpoint: bool

    def __post_init__(self) -> None:
        require(
            self.mlflow_experiment.strip() not in ("", "Default"),
            "mlflow_experiment",
            self.mlflow_experiment,
            "a name other than 'Default'",
        )
