"""`simple-llama evaluate --tasks`: public benchmarks through lm-evaluation-harness
(https://github.com/EleutherAI/lm-evaluation-harness), the base and the tuned model side by side."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simple_llama.errors import InputError
from simple_llama.files import read_json, write_json
from simple_llama.model.checkpoint import load_config
from simple_llama.model.config import MLA
from simple_llama.model.device import pick_device
from simple_llama.model.weights import is_pth
from simple_llama.params.base import BaseParams
from simple_llama.params.reading import Params
from simple_llama.params.tracking import TrackingParams
from simple_llama.pipeline import check_outside_outs
from simple_llama.training.fine_tuning import MODEL

RUN = Path("models/run.json")

Scores = dict[str, tuple[float, float | None]]
"""`task.metric` → value and its standard error, where the harness has one."""


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Which tasks are scored, and how their questions are put."""

    tasks: Sequence[str]
    include: str | None
    """A folder of further tasks, as YAML files."""
    limit: int | None
    """Examples of each task, for a first look; None: all."""
    chat_template: bool
    """Whether each question is put as a user's turn in the model's own chat template."""
    device: str


def evaluate_tasks(model: str, settings: TaskSettings, out: str | None) -> str:
    """Score a model folder and return the scores as a table.

    models/sft is compared with the base of params.yaml, and its scores are added to its MLflow run.
    out: a file that gets the scores as JSON. Raises InputError.
    """
    if out is not None:
        check_outside_outs(out)
    params = Params()
    own = Path(model).resolve() == MODEL.resolve()
    base = params.section(BaseParams).model_path
    folders = {"base": base, "tuned": model} if own else {"model": model}
    for folder in folders.values():
        _check_loads(folder)
    harness = _harness()
    manager = harness.tasks.TaskManager(include_path=settings.include)
    unknown = [name for name in settings.tasks if not manager.match_tasks([name])]
    if unknown:
        where = f" nor in {settings.include}" if settings.include else ""
        raise InputError(
            f"--tasks: no task {', '.join(map(repr, unknown))} in lm-eval {harness.__version__}"
            f"{where} (lm-eval ls tasks)"
        )
    scores = {name: _score(folder, model, settings, manager) for name, folder in folders.items()}
    report = {
        "models": folders,
        "limit": settings.limit,
        "chat_template": settings.chat_template,
        "lm_eval": harness.__version__,
        "scores": scores,
    }
    if out is not None:
        write_json(out, report)
    if own and RUN.exists() and settings.limit is None:
        _track(params.section(TrackingParams), scores)
    return _table(scores)


def _harness() -> Any:
    try:
        import lm_eval
        import lm_eval.tasks
    except ModuleNotFoundError:
        raise InputError(
            "evaluate --tasks needs lm-evaluation-harness, which is not installed: "
            "pip install -e '.[tasks]'"
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return lm_eval


def _check_loads(folder: str) -> None:
    """Raises InputError where `transformers`, which the harness computes with, cannot load it."""
    if is_pth(Path(folder)) or load_config(folder).model_type == MLA:
        raise InputError(
            f"{folder}: evaluate --tasks computes with transformers, which cannot load it, wanted "
            "a folder of a model_type that it knows"
        )


def _score(folder: str, model: str, settings: TaskSettings, manager: Any) -> Scores:
    """Score one model. Both get the tokenizer of `model`, so that both see the same tokens."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    loaded = HFLM(
        pretrained=folder,
        tokenizer=model,
        dtype="auto",
        device=str(pick_device(settings.device)),
        batch_size=16,
    )
    try:
        found = simple_evaluate(
            model=loaded,
            tasks=list(settings.tasks),
            task_manager=manager,
            limit=settings.limit,
            apply_chat_template=settings.chat_template,
            log_samples=False,
            bootstrap_iters=1000,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"--tasks: lm-eval could not score {folder}: {said}") from error
    assert found is not None
    return _flat(found["results"])


def _flat(results: Mapping[str, Mapping[str, Any]]) -> Scores:
    """Flatten the harness's results, whose keys are like 'acc,none' and 'acc_stderr,none'.

    Behind the comma stands the filter that the answers went through.
    """
    scores: Scores = {}
    for task, values in results.items():
        for key, value in values.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{filtered}")
            name = metric if filtered == "none" else f"{metric}.{filtered}"
            known = float(error) if isinstance(error, int | float) else None
            scores[f"{task}.{name}"] = (float(value), known)
    return scores


def _track(settings: TrackingParams, scores: Mapping[str, Scores]) -> None:
    from simple_llama.tracking.results import add_metrics

    metrics = {
        f"tasks/{'base_' if name == 'base' else ''}{key}": value
        for name, values in scores.items()
        for key, (value, _) in values.items()
    }
    add_metrics(settings, read_json(RUN)["run_id"], metrics)


def _table(scores: Mapping[str, Scores]) -> str:
    rows = [["", *scores]]
    for key in next(iter(scores.values())):
        cells = [values.get(key, (float("nan"), None)) for values in scores.values()]
        rows.append([key, *(_shown(value, error) for value, error in cells)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _shown(value: float, error: float | None) -> str:
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"
