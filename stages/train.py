"""`python -m stages.train`: data/tokens and model_path → models/sft, curves, an MLflow run."""

from simple_llama.params.train import TrainParams
from simple_llama.training.launch import run_stage
from simple_llama.training.run import run_training


def main() -> None:
    run_stage("stages.train", TrainParams, run_training)


if __name__ == "__main__":
    main()
