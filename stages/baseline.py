"""`python -m stages.baseline`: evaluates the base model on the validation split or a held-out file
→ models/baseline.jsonl, with which the evaluate stage compares every tuned model."""

from simple_llama.evaluation.baseline import run_baseline
from simple_llama.params.evaluate import EvaluateParams
from simple_llama.training.launch import run_stage


def main() -> None:
    run_stage("stages.baseline", EvaluateParams, run_baseline)


if __name__ == "__main__":
    main()
