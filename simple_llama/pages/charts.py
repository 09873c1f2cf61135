"""Charts of a page: lines and a histogram, laid out by matplotlib.

All lengths are user units of the SVG (about one pixel).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from simple_llama.brief import brief
from simple_llama.pages.drawing import Drawing, drawing, swatch
from simple_llama.pages.numbers import count, decimal
from simple_llama.pages.points import MOST_POINTS, Points, thin

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_DOTS = 60
"""Points of a line that are marked at most."""

_NAME_HEIGHT = 17.0
_LETTERS = 19.0
"""Font size of a wide chart's labels on a phone, which shrinks it: see style.css."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart."""

    label: str
    """Its name in the legend, in tooltips and at its end; may be any text."""
    points: Points
    style: str
    """CSS classes that give colour and width."""
    marker: str = ""
    """Matplotlib's name of the shape that marks each point, if there are few enough."""
    dots_only: bool = False
    """Small dots instead of a line."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A labelled vertical line."""

    x: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What the macro `figure` of parts.html.jinja shows as a card."""

    title: str
    svg: Markup | None = None
    """None where there is nothing to draw."""
    legend: Sequence[tuple[Markup, str]] = ()
    """Swatch and name of each line."""
    note: str = ""


def line_chart(
    *,
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str = "",
    size: tuple[float, float] = (680, 395),
    log: bool = False,
    mark: Mark | None = None,
    named: Sequence[Series] | None = None,
    name_ends: bool = False,
    note: str = "",
) -> Chart:
    """Draw lines over a common whole-numbered x (such as optimizer steps).

    log: a logarithmic y, for values above 0. named: what the legend and the spoken description
    name, all series by default. name_ends: at the right too, each beside the end of its line.
    """
    series = [one for one in series if len(one.points)]
    if not series:
        return Chart(title=title)
    named = [one for one in (series if named is None else named) if len(one.points)]
    narrow = size[0] <= 400
    with drawing(*size) as drawn:
        axes = drawn.axes(x_label, y_label, right=170 if name_ends else 14)
        x, y = np.concatenate([one.points for one in series]).T
        _scale_x(axes, x, ticks=4 if narrow else 6)
        if log:
            _scale_y_log(axes, y)
        else:
            starts = [one.points[0, 1] for one in series]
            _scale_y(axes, y, _ceiling(y, starts), ticks=4 if narrow else 6)
        top = axes.get_ylim()[1]
        if y.max() > top:
            note = f"{note} Values above {decimal(top)} are drawn at the upper edge.".strip()
        for one in series:
            _draw_line(drawn, axes, one, top)
        if mark:
            _draw_mark(axes, mark)
        if name_ends:
            _name_ends(drawn, axes, named, top)
        description = [*map(_in_words, named), *([f"{mark.text}."] if mark else [])]
        svg = drawn.svg(title, " ".join(description))
    legend = [(swatch(one.style, one.marker), one.label) for one in named]
    return Chart(title=title, svg=svg, legend=legend if len(series) > 1 else (), note=note)


def histogram(
    *,
    title: str,
    buckets: Sequence[tuple[int, int, int]],
    x_label: str,
    y_label: str,
    marks: Sequence[Mark] = (),
    size: tuple[float, float] = (600, 280),
    note: str = "",
) -> Chart:
    """Draw (from, to inclusive, how many) buckets as bars, below the texts of the marks."""
    if not buckets:
        return Chart(title=title)
    low, high, many = np.array(buckets, np.float64).T
    with drawing(*size) as drawn:
        axes = drawn.axes(x_label, y_label)
        _scale_x(axes, np.array([low[0] - 1, high[-1]]), ticks=6)
        top = max(many.max(), 1) * (1.25 if marks else 1)
        _scale_y(axes, np.append(many, 0), top, ticks=5, whole=True)
        axes.bar(low - 1, many, high - low + 1, align="edge", gid="bar tip", clip_on=False)
        drawn.tips += [f"{count(a)} to {count(b)}: {count(n)}" for a, b, n in buckets]
        for line, mark in enumerate(marks):
            _draw_mark(axes, mark, line=line)
        first, last, most = buckets[int(many.argmax())]
        description = (
            f"{count(many.sum())} in all, from {count(low[0])} to {count(high[-1])}; "
            f"most, {count(most)}, between {count(first)} and {count(last)}."
        )
        return Chart(title=title, svg=drawn.svg(title, f"{description} {note}".strip()), note=note)


def _scale_x(axes: Axes, values: Points, *, ticks: int) -> None:
    left, right = values.min(), values.max()
    if left == right:
        left, right = left - 1, right + 1
    if 0 < left < 0.05 * right:
        left = 0.0
    axes.set_xlim(left, right)
    axes.xaxis.set_major_locator(_round_values(ticks, whole=True))
    axes.xaxis.set_major_formatter(tick_text)


def _scale_y(axes: Axes, values: Points, top: float, *, ticks: int, whole: bool = False) -> None:
    low = values.min()
    if 0 <= low < top / 2:
        low = 0.0
    if low == top:
        low, top = low - 0.5 * (abs(low) or 1), top + 0.5 * (abs(top) or 1)
    locator = _round_values(ticks, whole=whole)
    upward = locator.tick_values(low, top)
    axes.set_ylim(upward[0], max(top + 0.04 * (top - upward[0]), upward[1]))
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_major_formatter(tick_text)
    _make_room_for_labels(axes)


def _ceiling(values: Points, starts: Sequence[float]) -> float:
    """Top of the y axis: the maximum, unless a few outliers would flatten everything else.

    Where the lines start is always shown: a loss that falls steeply at first is no outlier.
    """
    usual, most = np.quantile(values, 0.95, method="lower"), values.max()
    return float(min(most, max(5 * usual, *starts)) if usual > 0 else most)


def _scale_y_log(axes: Axes, values: Points) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    margin = (values.max() / values.min()) ** 0.04 * 1.01
    axes.set_yscale("log")
    axes.set_ylim(values.min() / margin, values.max() * margin)
    digits = (1, 2, 5) if values.max() < 1000 * values.min() else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=digits))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(tick_text)
    _make_room_for_labels(axes)


def _make_room_for_labels(axes: Axes) -> None:
    """Move the left side inwards until the longest label of y fits, on a phone too."""
    figure, box = axes.get_figure(root=True), axes.get_position()
    assert figure is not None
    width = figure.bbox.width
    letters = _LETTERS if width > 400 else 12
    low, high = axes.get_ylim()
    shown = [tick_text(y) for y in axes.yaxis.get_majorticklocs() if low <= y <= high]
    ems = (sum(0.64 if c.isalnum() else 0.36 for c in text) for text in shown)
    left = max(box.x0, (10 + letters * max(ems, default=0.0)) / width)
    axes.set_position((left, box.y0, box.x1 - left, box.height))


def tick_text(value: float, place: float = 0) -> str:
    """Write a tick briefly: 0.25, 25,000, 1.5e-3."""
    if value == 0 or 1e-2 <= abs(value) < 1e6:
        return f"{value:,.6g}"
    return brief(value, 3)


def _round_values(most: int, *, whole: bool = False) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(most, integer=whole, steps=[1, 2, 2.5, 5, 10])


def _draw_line(drawn: Drawing, axes: Axes, series: Series, top: float) -> None:
    """Draw a line and its marked points; what is higher than `top`, there."""
    points = thin(series.points, 100 if series.dots_only else MOST_POINTS)
    x, y = points[:, 0], np.minimum(points[:, 1], top)
    if series.dots_only:
        axes.plot(x, y, "s", gid=f"small {series.style}", markersize=3, clip_on=False)
        return
    axes.plot(x, y, gid=f"line {series.style}", clip_on=False)
    if len(x) == 1 or (series.marker and len(x) <= MOST_DOTS):
        gid = f"dot tip {series.style}"
        axes.plot(x, y, series.marker or "o", gid=gid, markersize=7, clip_on=False)
        drawn.tips += [f"{series.label} at {count(a)}: {decimal(b)}" for a, b in points]


def _draw_mark(axes: Axes, mark: Mark, *, line: int = 0) -> None:
    """Draw a mark, its text on the side with more room and `line` lines down."""
    left, right = axes.get_xlim()
    x = min(max(mark.x, left), right)
    before = x > (left + right) / 2
    axes.axvline(x, gid="mark", clip_on=False)
    axes.annotate(
        mark.text,
        (x, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-6 if before else 6, -12 - 21 * line),
        textcoords="offset points",
        ha="right" if before else "left",
        gid="mark-text",
    )


def _name_ends(drawn: Drawing, axes: Axes, series: Sequence[Series], top: float) -> None:
    """Write names at the right, each beside the end of its line.

    By hand, for matplotlib does not move texts apart where they overlap.
    """
    from matplotlib.lines import Line2D
    from matplotlib.transforms import IdentityTransform

    box, pixels = axes.bbox, IdentityTransform()
    ends = [axes.transData.transform((x, min(y, top))) for x, y in (s.points[-1] for s in series)]
    placed = sorted(zip(ends, series), key=lambda one: float(one[0][1]))
    placed = placed[: int(box.height / _NAME_HEIGHT)]
    # in steps of one name, heights that do not fall are names that do not overlap
    steps = _NAME_HEIGHT * np.arange(len(placed))
    heights = np.maximum.accumulate([end[1] for end, _ in placed] - steps)
    heights = np.minimum(heights, box.y1 - steps[-1]) + steps
    for ((x, y), one), height in zip(placed, heights):
        leader = Line2D([x + 6, max(box.x1, x + 6), box.x1 + 14], [y, y, height], transform=pixels)
        leader.set_gid("leader")
        dot = Line2D([box.x1 + 22], [height], transform=pixels, marker=one.marker, markersize=7)
        dot.set_gid(f"dot {one.style}")
        for artist in (leader, dot):
            drawn.figure.add_artist(artist)
        drawn.figure.text(box.x1 + 32, height - 4, "name", gid="name", transform=pixels)
        drawn.names.append(one.label if len(one.label) <= 20 else f"{one.label[:19]}…")


def _in_words(series: Series) -> str:
    """A line's first, last and lowest value."""
    (start, first), (end, last) = series.points[0], series.points[-1]
    return (
        f"{series.label}: {decimal(first)} at {count(start)}, {decimal(last)} at {count(end)}, "
        f"lowest {decimal(series.points[:, 1].min())}."
    )
