"""The work of the stage evaluate: score the tuned model, compare it with its base, report."""

from pathlib import Path

import torch

from simple_llama.evaluation.baseline import read_baseline, score_tuned
from simple_llama.evaluation.dataset import EvalDataset
from simple_llama.evaluation.metrics import summarise
from simple_llama.evaluation.report.contents import read_contents
from simple_llama.evaluation.report.page import render
from simple_llama.evaluation.samples import answered_examples, highest_losses
from simple_llama.evaluation.summary import scores_in_a_line
from simple_llama.evaluation.tracked import continued_run, log_evaluation
from simple_llama.files import atomic_write, read_json, write_json, write_json_lines
from simple_llama.params.evaluate import EvaluateParams
from simple_llama.params.reading import Params
from simple_llama.training.distributed import Ranks

MODEL = "models/sft"
REPORT = Path("models/report.html")


def run_evaluation(device: torch.device, ranks: Ranks, all_params: Params) -> None:
    """Score the tuned model on this device, together with all ranks; the main one reports."""
    params = all_params.section(EvaluateParams)
    dataset = EvalDataset.read(params)
    if not ranks.is_main:
        score_tuned(MODEL, dataset, device, ranks, params)
        return
    base = read_baseline(dataset)
    with continued_run(all_params) as run:
        with ranks.propagate_errors():
            tuned = score_tuned(MODEL, dataset, device, ranks, params)
        scores = summarise(tuned, base, dataset.categories, dataset.description)
        scores |= _rounded_base(params)
        samples = answered_examples(dataset, base, tuned)
        worst = highest_losses(dataset, base, tuned)
        write_json("reports/eval.json", scores)
        write_json_lines("models/samples.jsonl", samples)
        with atomic_write(REPORT) as file:
            file.write(render(read_contents(scores, samples, worst, all_params)).encode())
        log_evaluation(run, scores, samples, REPORT, all_params)
    print(scores_in_a_line(scores, params))


def _rounded_base(params: EvaluateParams) -> dict[str, float]:
    """What train found of a base held in 4 bits, where the original is scored on the same
    examples."""
    loss = read_json("reports/train.json").get("rounded_base_val_loss")
    if loss is None or not params.on_validation_split:
        return {}
    return {"rounded_base_val_loss": round(loss, 6)}
