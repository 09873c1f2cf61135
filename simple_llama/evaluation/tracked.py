"""Logging an evaluation to MLflow: it continues the run of its training."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simple_llama import tracking
from simple_llama.evaluation.summary import scores_in_a_line
from simple_llama.files import read_json
from simple_llama.pages.numbers import things
from simple_llama.params.base import BaseParams
from simple_llama.params.evaluate import EvaluateParams
from simple_llama.params.reading import Params
from simple_llama.params.tracking import TrackingParams
from simple_llama.process import main_root
from simple_llama.training.resume import remove_published


@contextmanager
def continued_run(params: Params) -> Iterator[tracking.Run]:
    """Continue the run of the training that made models/sft, whose resume state is done with."""
    run_id = read_json("models/run.json")["run_id"]
    remove_published(main_root(), run_id)
    with tracking.evaluation_run(
        params.section(TrackingParams),
        run_id,
        params=tracking.evaluation_values(params),
        training_params=tracking.training_values(params),
    ) as run:
        yield run


def log_evaluation(
    run: tracking.Run,
    scores: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    report: Path,
    params: Params,
) -> None:
    """Log scores as metrics, counts as tags, the samples as a table and the report as a file."""
    named = {f"eval_{key}": value for key, value in scores.items()}
    run.log_final({key: value for key, value in named.items() if isinstance(value, float)})
    run.tag({key: str(value) for key, value in named.items() if isinstance(value, int)})
    run.log_file(report)
    run.log_table(samples, "samples/evaluation.json")
    base, data = params.section(BaseParams).model_path, params.values["ft_json_path"]
    steps = things(read_json("reports/train.json")["steps"], "step")
    run.describe(
        f"{base} fine-tuned on {data}, {steps}.  \n"
        f"{scores_in_a_line(scores, params.section(EvaluateParams))}"
    )
