"""A picture of a study: how much each param mattered."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simple_llama.brief import brief
from simple_llama.pages.drawing import matplotlib_defaults
from simple_llama.pages.template import printable

if TYPE_CHECKING:
    import optuna
    from matplotlib.figure import Figure


def draw(study: "optuna.Study", path: Path) -> list[str]:
    """Draw how much of the loss's variance each param explains, and the losses over each param.

    The shares are fANOVA's (https://proceedings.mlr.press/v32/hutter14.html). Returns a line that
    says them. Where there are too few trials or params to tell, nothing is drawn or returned.
    """
    import optuna

    states = (optuna.trial.TrialState.COMPLETE,)
    trials = study.get_trials(deepcopy=False, states=states)
    if len({trial.value for trial in trials}) < 2 or len(trials[0].params) < 2:
        return []
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    with matplotlib_defaults():
        _drawn(trials, shares).savefig(path)
    said = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return [f"what mattered: {said} ({path})"]


def _drawn(trials: "list[optuna.trial.FrozenTrial]", shares: dict[str, float]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(shares) + 4, 3.5), layout="constrained")
    first, *others = figure.subplots(1, len(shares) + 1)
    first.barh(list(shares)[::-1], list(shares.values())[::-1])
    first.set(title="share of the loss's variance", xlim=(0, 1))
    figure.suptitle(f"{len(trials)} finished trials, each a point in every chart but the first")
    for axes, name in zip(others, shares):
        axes.scatter([_place(trial.params[name]) for trial in trials], [t.value for t in trials])
        if getattr(trials[0].distributions[name], "log", False):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda x, _: brief(x, 3))
            left, right = axes.get_xlim()
            within = right < 10 * left
            axes.xaxis.set_minor_formatter(partial(_minor_tick, within))
        axes.set(title=name, ylabel="validation loss, nats per token")
    return figure


def _minor_tick(shown: bool, x: float, place: float) -> str:
    """2e-3 and 5e-3, where the axis is within one power of ten."""
    text = brief(x, 3)
    return text if shown and text.lstrip("0.")[:1] in {"2", "5"} else ""


def _place(value: Any) -> float | str:
    """A number as it is, all else as a text in which nothing is a formula."""
    if isinstance(value, float | int) and not isinstance(value, bool):
        return value
    return str(printable(str(value))).replace("$", r"\$")
