"""`python -m stages.evaluate`: evaluates models/sft on the validation split or a held-out file, and
compares it with the baseline → reports/eval.json, models/samples.jsonl, models/report.html."""

from simple_llama.evaluation.run import run_evaluation
from simple_llama.params.evaluate import EvaluateParams
from simple_llama.training.launch import run_stage


def main() -> None:
    run_stage("stages.evaluate", EvaluateParams, run_evaluation)


if __name__ == "__main__":
    main()
