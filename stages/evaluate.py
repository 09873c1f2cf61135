"""`python -m stages.evaluate`: models/sft on the validation split, or a held-out file, beside what
baseline found of its base → reports/eval.json, models/samples.jsonl, models/report.html."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simple_llama import tracking
from simple_llama.data.batches import split_prompt_and_reply
from simple_llama.data.tokens import Tokens
from simple_llama.evaluation.baseline import read_baseline, score_tuned
from simple_llama.evaluation.metrics import Evaluation, reference, summarise
from simple_llama.evaluation.report.page import ReportInput, render
from simple_llama.evaluation.subject import TOKENIZER, TRAIN_TOKENS, VAL_TOKENS, Subject
from simple_llama.files import atomic_write, read_csv, read_json, write_json
from simple_llama.model.device import is_deterministic, pick_device
from simple_llama.params import (
    BaseParams,
    EvaluateParams,
    Params,
    ProcessParams,
    TrackingParams,
    TrainParams,
    without,
)
from simple_llama.process import main_root
from simple_llama.training.distributed import Ranks
from simple_llama.training.launch import run_stage
from simple_llama.training.resume import remove_published

MODEL = "models/sft"
SAMPLES = Path("models/samples.jsonl")
REPORT = Path("models/report.html")
HISTOGRAM_BUCKETS = 24
WORST_SHOWN = 20


def main() -> None:
    run_stage("stages.evaluate", EvaluateParams, evaluate_on)


def evaluate_on(device: torch.device, ranks: Ranks, all_params: Params) -> None:
    """Score the tuned model on this device, together with all ranks, and report."""
    params = all_params.section(EvaluateParams)
    subject = Subject.read(params)
    if not ranks.is_main:
        score_tuned(MODEL, subject, device, ranks, params)
        return
    base = read_baseline(subject)
    training_params = without(all_params, EvaluateParams)
    settings = {k: v for k, v in all_params.values.items() if k not in training_params}
    trained = read_json("models/run.json")["run_id"]
    remove_published(main_root(), trained)
    with tracking.evaluation_run(
        all_params.section(TrackingParams),
        trained,
        params=settings,
        training_params=training_params,
    ) as run:
        with ranks.propagate_errors():
            tuned = score_tuned(MODEL, subject, device, ranks, params)
        result = summarise(tuned, base, subject.categories, subject.sentence)
        samples = compare(subject, base, tuned)
        write(result, samples, worst(subject, base, tuned), all_params)
        record(run, result, samples, all_params)
    print(summary(result, params))


def compare(subject: Subject, base: Evaluation, tuned: Evaluation) -> list[dict[str, Any]]:
    """The answered examples side by side: prompt, reference, base answer, tuned answer."""
    tokens, tokenizer = subject.tokens, subject.tokenizer
    return [
        {
            "category": subject.categories[example],
            "prompt": tokenizer.decode(split_prompt_and_reply(tokens, example)[0]),
            "reference": reference(tokens, tokenizer, example),
            "base": base.replies[example],
            "tuned": tuned.replies[example],
            "base_match": base.matches.get(example),
            "match": tuned.matches.get(example),
        }
        for example in sorted(tuned.replies)
    ]


def worst(subject: Subject, base: Evaluation, tuned: Evaluation) -> list[dict[str, Any]]:
    """The examples with the highest loss per token: what to look at in the data."""
    losses, before = (one.scores.loss / one.scores.tokens for one in (tuned, base))
    order = np.argsort(-losses, kind="stable")[:WORST_SHOWN]
    return [
        {
            "id": subject.ids[example],
            "category": subject.categories[example],
            "loss": float(losses[example]),
            "base_loss": float(before[example]),
            "tokens": int(tuned.scores.tokens[example]),
            "reference": reference(subject.tokens, subject.tokenizer, example),
        }
        for example in order.tolist()
    ]


def write(
    result: dict[str, Any],
    samples: list[dict[str, Any]],
    worst: list[dict[str, Any]],
    params: Params,
) -> None:
    """The stage's outs."""
    write_json("reports/eval.json", result)
    with atomic_write(SAMPLES) as file:
        for sample in samples:
            file.write(f"{json.dumps(sample, ensure_ascii=False)}\n".encode())
    lengths = np.concatenate([Tokens.read(path).lengths for path in (TRAIN_TOKENS, VAL_TOKENS)])
    page = render(
        ReportInput(
            prepare=read_json("reports/prepare.json"),
            tokenize=read_json("reports/tokenize.json"),
            train=read_json("reports/train.json"),
            evaluation=result,
            train_curve=read_csv("reports/curves/train.csv"),
            val_curve=read_csv("reports/curves/val.csv"),
            lengths=histogram(lengths),
            samples=samples,
            worst=worst,
            params=without(params, TrackingParams, ProcessParams),
            facts=facts(params),
        )
    )
    with atomic_write(REPORT) as file:
        file.write(page.encode())


def histogram(lengths: np.ndarray[Any, np.dtype[np.int64]]) -> list[tuple[int, int, int]]:
    """(from, to inclusive, examples) in buckets of equal width, in tokens."""
    width = -(-int(lengths.max()) // HISTOGRAM_BUCKETS)
    counts = np.bincount((lengths - 1) // width)
    return [(i * width + 1, (i + 1) * width, int(n)) for i, n in enumerate(counts)]


def facts(params: Params) -> dict[str, str]:
    """What was trained on what."""
    values = params.values
    weights = "full fine-tuning" + (f", dropout {values['dropout']}" if values["dropout"] else "")
    return {
        "Base model": values["model_path"],
        "Data": values["ft_json_path"],
        "Tokenizer": f"{values['tokenizer_path']}, prompt format {prompt_format()}",
        "Repeatable": repeatable(params.section(TrainParams)),
        "Trained": f"{weights}, supervising {values['supervise'].replace('_', ' ')}",
        "Step": f"{values['batch_size'] * values['grad_accum_steps']} examples, "
        f"{values['lr_schedule']} schedule from {values['max_lr']:g} to {values['min_lr']:g}",
    }


def prompt_format() -> str:
    """The one that tokenize chose."""
    config = read_json(Path(TOKENIZER) / "tokenizer_config.json")
    return str(config["prompt_format"])


def repeatable(params: TrainParams) -> str:
    """How exactly the same training gives the same weights, where it runs."""
    device = pick_device(params.device)
    if is_deterministic(device) and params.enable_compilation is not True:
        return f"byte for byte on {device.type}, with the same kind of processor and thread count"
    what = "compiled code" if is_deterministic(device) else device.type
    return f"closely but not byte for byte: {what} may add in another order"


def record(
    run: tracking.Run,
    result: dict[str, Any],
    samples: list[dict[str, Any]],
    params: Params,
) -> None:
    """The same for MLflow."""
    scores = {f"eval_{key}": value for key, value in result.items()}
    run.log_final({key: value for key, value in scores.items() if isinstance(value, float)})
    run.tag({key: str(value) for key, value in scores.items() if isinstance(value, int)})
    run.log_file(REPORT)
    run.log_table(samples, "samples/evaluation.json")
    train = read_json("reports/train.json")
    base = params.section(BaseParams).model_path
    run.describe(
        f"{base} fine-tuned on {params.values['ft_json_path']}, {train['steps']:,} steps.  \n"
        f"{summary(result, params.section(EvaluateParams))}"
    )


def summary(result: dict[str, Any], params: EvaluateParams) -> str:
    """In a line: 'validation loss 3.21 -> 0.45, exact match 0.0% -> 71.2%'."""
    where = "validation" if params.on_validation_split else "held-out"
    line = f"{where} loss {result['base_val_loss']:.4f} -> {result['val_loss']:.4f}"
    if result["exact_match"] is not None:
        line += (
            f", exact match {result['base_exact_match']:.1%} -> {result['exact_match']:.1%} "
            f"of {result['exact_match_examples']:,}"
        )
    return line


if __name__ == "__main__":
    main()
