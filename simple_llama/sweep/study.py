"""`simple-llama sweep FILE`: trials drawn by Optuna, run as DVC experiments, kept in a database."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simple_llama.brief import brief
from simple_llama.errors import InputError
from simple_llama.params.reading import Params
from simple_llama.pipeline import dep_digest, dep_path, read_stages
from simple_llama.process import main_root
from simple_llama.stage_code import LISTINGS
from simple_llama.sweep.picture import draw
from simple_llama.sweep.ranges import Ranges
from simple_llama.sweep.trial import TrialFailed, TrialPruned, run_trial
from simple_llama.tracking.location import sqlite_uri
from simple_llama.tracking.origin import is_dead, process_tags

if TYPE_CHECKING:
    import optuna

DATABASE = "optuna.db"
MAX_FAILURES = 3
"""Trials that may fail in a row; after these, the next would fail too."""


def sweep(file: str) -> str:
    """Run trials until as many have ended as the file wants; return their table.

    The study has the file's name without its ending, and is kept in optuna.db beside mlflow.db. So
    the same command continues after a kill, and several commands at once share the trials. Raises
    InputError.
    """
    path = Path(file)
    params = Params()
    ranges = Ranges.read(path, params)
    name = _name(path)
    optuna = _optuna()
    study = optuna.create_study(
        study_name=name,
        storage=sqlite_uri(main_root() / DATABASE),
        direction="minimize",
        load_if_exists=True,
    )
    _check_same(study, ranges, params, path)
    _enqueue_the_killed(study)
    # the same numbers drawn again would be the same trials
    study.sampler = optuna.samplers.TPESampler(seed=params.values["seed"] + len(study.trials))
    failures: list[str] = []
    while _ended(study) < ranges.trials:
        trial = study.ask()
        for key, value in process_tags().items():
            trial.set_user_attr(key, value)
        failure = _run(study, trial, ranges)
        failures = [*failures, failure] if failure else []
        if len(failures) == MAX_FAILURES:
            raise InputError(f"{name}: {MAX_FAILURES} trials failed in a row: {failures[-1]}")
    lines = _table(study, list(ranges.params))
    return "\n".join([*lines, *draw(study, path.with_suffix(".png"))])


def _name(path: Path) -> str:
    name = re.sub("[^A-Za-z0-9]+", "-", path.stem).strip("-")
    if not name:
        raise InputError(f"{path}: wanted a file name with letters, after which trials are called")
    return name


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError:
        raise InputError(
            "sweep needs Optuna, which is not installed: pip install -e '.[sweep]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _check_same(study: "optuna.Study", ranges: Ranges, params: Params, path: Path) -> None:
    """Raises InputError where the study's trials had other inputs: its losses mean nothing then."""
    wanted = {
        "ranges": {key: repr(one) for key, one in ranges.params.items()},
        "params, data, models or code": _all_else(ranges, params),
    }
    known = study.user_attrs.get("inputs", wanted)
    for what, inputs in wanted.items():
        if known[what] != inputs:
            differs = sorted(
                name
                for name in inputs.keys() | known[what].keys()
                if inputs.get(name) != known[what].get(name)
            )
            raise InputError(
                f"{path}: its {what} are not those of the study {study.study_name} in {DATABASE} "
                f"({', '.join(differs)}), wanted the same, or a file of another name"
            )
    study.set_user_attr("inputs", wanted)


def _all_else(ranges: Ranges, params: Params) -> dict[str, str]:
    """What a trial's result depends on besides the ranges: the other params of the stages, and the
    digests of the files that stages read and no stage writes."""
    stages = [stage for stage in read_stages().values() if LISTINGS not in stage.outs]
    written = [out for stage in stages for out in stage.outs]
    values, found = params.values, dict[str, str]()
    for stage in stages:
        found |= {name: str(values[name]) for name in stage.params if name not in ranges.params}
        for dep in {*stage.deps} - {*found}:
            path = dep_path(dep, values)
            if path.parent == LISTINGS or (
                path.exists() and not any(path.is_relative_to(out) for out in written)
            ):
                found[dep] = dep_digest(dep, values)
    return found


def _enqueue_the_killed(study: "optuna.Study") -> None:
    """Queue the trials whose process was killed: their training continues where it stopped."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        if is_dead(trial.user_attrs):
            study.tell(trial.number, state=TrialState.FAIL)
            if trial.params:
                study.enqueue_trial(trial.params)


def _ended(study: "optuna.Study") -> int:
    from optuna.trial import TrialState

    states = (TrialState.COMPLETE, TrialState.PRUNED)
    return len(study.get_trials(deepcopy=False, states=states))


def _run(study: "optuna.Study", trial: "optuna.Trial", ranges: Ranges) -> str | None:
    """Run one trial. Returns why it failed, None where it did not."""
    from optuna.trial import TrialState

    values = {name: one.draw(trial, name) for name, one in ranges.params.items()}
    name = f"{study.study_name}-{trial.number}"
    shown = ", ".join(
        f"{key}={brief(value) if isinstance(value, float) else value}"
        for key, value in values.items()
    )
    print(f"trial {trial.number} of {study.study_name}: {shown}", flush=True)

    def should_continue(epoch: int, loss: float) -> bool:
        trial.report(loss, epoch)
        return not trial.should_prune()

    try:
        with _given_back(study, trial):
            loss = run_trial(name, values, should_continue)
    except TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
        print(f"trial {trial.number}: stopped, the others were better by then", flush=True)
    except TrialFailed as error:
        study.tell(trial, state=TrialState.FAIL)
        print(f"trial {trial.number} failed: {error}", flush=True)
        return str(error)
    else:
        study.tell(trial, loss)
        print(f"trial {trial.number}: validation loss {loss:.4f}", flush=True)
    return None


@contextmanager
def _given_back(study: "optuna.Study", trial: "optuna.Trial") -> Iterator[None]:
    """Queue an interrupted trial, for the next command that continues the study."""
    from optuna.trial import TrialState

    try:
        yield
    except (TrialPruned, TrialFailed):
        raise
    except BaseException:
        study.tell(trial, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
        raise


def _table(study: "optuna.Study", names: list[str]) -> list[str]:
    """One line for each trial, the best first."""
    trials = sorted(
        (trial for trial in study.trials if trial.state.is_finished()),
        key=lambda trial: (trial.state.value, trial.value or 0.0, trial.number),
    )
    counts = Counter(trial.state.name.lower() for trial in trials)
    said = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    rows = [["experiment", "val_loss", *names]]
    for trial in trials:
        value = trial.state.name.lower()
        if value == "complete" and trial.value is not None:
            value = f"{trial.value:.4f}"
        drawn = (trial.params.get(name, "") for name in names)
        shown = (brief(one, 4) if isinstance(one, float) else str(one) for one in drawn)
        rows.append([f"{study.study_name}-{trial.number}", value, *shown])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    if not counts["complete"]:
        return [said, *lines]
    best = f"{study.study_name}-{study.best_trial.number}"
    return [f"{said}; the best first", *lines, f"to take it over: dvc exp apply {best}"]
