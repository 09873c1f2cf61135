"""`python -m stages.baseline`: the base model on the validation split, or a held-out file →
models/baseline.jsonl, which evaluate compares every training with."""

import torch

from simple_llama.evaluation.baseline import score_base, write_baseline
from simple_llama.evaluation.subject import Subject
from simple_llama.params import BaseParams, EvaluateParams, Params
from simple_llama.training.distributed import Ranks
from simple_llama.training.launch import run_stage


def main() -> None:
    run_stage("stages.baseline", EvaluateParams, baseline_on)


def baseline_on(device: torch.device, ranks: Ranks, all_params: Params) -> None:
    """Score the base model on this device, together with all ranks."""
    params = all_params.section(EvaluateParams)
    base = all_params.section(BaseParams).model_path
    evaluation = score_base(base, Subject.read(params), device, ranks, params)
    if ranks.is_main:
        write_baseline(evaluation)


if __name__ == "__main__":
    main()
