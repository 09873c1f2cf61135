"""The loss curves of several runs in one drawing, which tells each by colour and shape.

A run keeps both wherever the page names it. Losses are in nats per token.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from simple_llama.evaluation.comparison.runs import Run
from simple_llama.pages.charts import Chart, Series, line_chart
from simple_llama.pages.drawing import swatch
from simple_llama.pages.points import Points, finite_points, smooth

SMOOTHED_FROM = 100
"""Training curves of more points than this are smoothed."""

COLOURS = 8
"""Classes c0 to c7 of style.css."""
SHAPES = "os^D"
"""Matplotlib's circle, square, triangle and diamond."""


def swatch_of(index: int) -> Markup:
    """The line of the run that stands at this place."""
    return swatch(f"strong {_colour(index)}", SHAPES[index % len(SHAPES)])


def loss_curves(runs: Sequence[Run], *, log: bool) -> Chart:
    """Draw all losses of the runs, on a linear or a logarithmic scale."""
    lines = [_lines(run, index, log=log) for index, run in enumerate(runs)]
    outdated = ", ".join(run.name for run in runs if run.made_with and run.curves["train"])
    return line_chart(
        title=f"Loss{', on a logarithmic scale' if log else ''}",
        series=[series for one in lines for series in one],
        named=[next((s for s in one[::-1] if len(s.points)), one[-1]) for one in lines],
        name_ends=True,
        x_label="optimizer step",
        y_label="nats per token",
        size=(800, 400),
        log=log,
        note="Thick, with markers: validation on all its examples. Small dots: interval "
        "validation, on a sample. Thin: training, smoothed where there are over "
        f"{SMOOTHED_FROM} steps."
        + (f" Of other params, as the scores are: {outdated}." if outdated else ""),
    )


def _lines(run: Run, index: int, *, log: bool) -> list[Series]:
    """The run's series, what is drawn above last."""

    def points(curve: str) -> Points:
        found = finite_points(run.curves.get(curve, []), "step", "loss")
        return found[found[:, 1] > 0] if log else found

    train, colour, marker = points("train"), _colour(index), SHAPES[index % len(SHAPES)]
    train = smooth(train) if len(train) > SMOOTHED_FROM else train
    return [
        Series(label=run.name, points=train, style=f"faint {colour}"),
        Series(label=run.name, points=points("interval"), style=colour, dots_only=True),
        Series(label=run.name, points=points("val"), style=f"strong {colour}", marker=marker),
    ]


def _colour(index: int) -> str:
    """Classes of a run's lines: its colour, and dashes once the colours are used up."""
    return f"c{index % COLOURS} d{index // COLOURS % 3}"
