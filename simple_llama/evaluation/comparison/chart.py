"""The loss curves of several runs in one drawing: colours, markers, axes, labels and their CSS.

A run keeps its colour and marker wherever the page names it. Losses are in nats per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from simple_llama.evaluation.charts import (
    Frame,
    Point,
    figure,
    finite_points,
    nothing,
    smooth,
    thin,
    ticks,
    written,
)
from simple_llama.evaluation.comparison.runs import Run
from simple_llama.evaluation.comparison.scores import loss
from simple_llama.evaluation.page import count, decimal, esc, section

SMOOTHED_FROM = 100
"""Training curves of more points than this are smoothed."""

COLOURS = 8
MARKERS = (
    "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
    "m-4-4h8v8h-8z",
    "m0-5l5 9h-10z",
    "m0-5l5 5-5 5-5-5z",
)
"""Circle, square, triangle, diamond around a point."""


def _colour(index: int) -> str:
    """Class of a run's lines: its colour, and dashes once the colours are used up."""
    return f"c{index % COLOURS} d{index // COLOURS % 3}"


def _marker(index: int, x: float, y: float, title: str = "") -> str:
    shape = MARKERS[index % len(MARKERS)]
    told = f"<title>{esc(title)}</title>" if title else ""
    return f'<path class="dot {_colour(index)}" d="M{x:.1f} {y:.1f}{shape}">{told}</path>'


def swatch(index: int) -> str:
    return (
        '<svg class="swatch" viewBox="0 0 26 12" aria-hidden="true">'
        f'<path class="line {_colour(index)}" d="M1 6L25 6"/>{_marker(index, 13, 6)}</svg>'
    )


def curves(runs: Sequence[Run]) -> str:
    linear, log = (_chart(runs, log=log) for log in (False, True))
    switch = "".join(
        f'<input type="radio" name="scale" id="{name}"{state}/><label for="{name}">{name}</label>'
        for name, state in (("linear", ' checked="checked"'), ("logarithmic", ""))
    )
    return section(
        "Loss curves",
        f'<div role="group" aria-label="Scale of the losses">{switch}'
        f'<div class="plot linear">{linear}</div><div class="plot logarithmic">{log}</div></div>',
    )


@dataclass(frozen=True, kw_only=True)
class _Lines:
    """What is drawn of a run: (step, loss), ascending."""

    index: int
    name: str
    train: Sequence[Point]
    val: Sequence[Point]
    interval: Sequence[Point]


def _lines(run: Run, index: int, *, log: bool) -> _Lines:
    def points(curve: str) -> list[Point]:
        found = finite_points(run.curves.get(curve, []), "step", "loss")
        return [(x, y) for x, y in found if y > 0 or not log]

    train = points("train")
    return _Lines(
        index=index,
        name=run.name,
        train=smooth(train) if len(train) > SMOOTHED_FROM else train,
        val=points("val"),
        interval=points("interval"),
    )


def _chart(runs: Sequence[Run], *, log: bool) -> str:
    lines = [_lines(run, index, log=log) for index, run in enumerate(runs)]
    points = [point for one in lines for point in (*one.train, *one.val, *one.interval)]
    if not points:
        return nothing("Loss")
    right = max(x for x, _ in points)
    left = min(0.0, *(x for x, _ in points))
    bounds, upward = _log_axis(points) if log else _axis(points)
    frame = Frame(width=800, height=400, x=(left, max(right, left + 1)), y=bounds, right=170)
    across = written(ticks(*frame.x, most=6, whole=True), *frame.x)
    drawing = frame.axes(across, upward, "optimizer step", "nats per token")
    scale = math.log10 if log else float
    drawing += "".join(_drawn(one, frame, scale) for one in lines)
    drawing += _direct_labels(lines, frame, scale)
    note = (
        "Thick, with markers: validation on all its examples. Small dots: interval validation, on "
        f"a sample. Thin: training, smoothed where there are over {SMOOTHED_FROM} steps."
    )
    if not log and max(y for _, y in points) > bounds[1]:
        note += f" Values above {decimal(bounds[1])} are drawn at the upper edge."
    legend = "".join(
        f'<span class="legend">{swatch(one.index)}{esc(one.name)}</span>' for one in lines
    )
    return figure(
        title=f"Loss, {'logarithmic' if log else 'linear'}",
        description=" ".join(_in_words(one) for one in lines),
        size=(frame.width, frame.height),
        drawing=drawing,
        legend=legend,
        note=note,
    )


def _in_words(lines: _Lines) -> str:
    points = lines.val or lines.interval or lines.train
    if not points:
        return f"{lines.name}: nothing."
    (start, first), (end, last) = points[0], points[-1]
    return f"{lines.name}: {loss(first)} at {count(start)}, {loss(last)} at {count(end)}."


def _axis(points: Sequence[Point]) -> tuple[tuple[float, float], list[tuple[float, str]]]:
    """Range and ticks, without a few outliers that would flatten everything else."""
    ordered = sorted(y for _, y in points)
    usual, low, top = ordered[int(0.95 * (len(ordered) - 1))], ordered[0], ordered[-1]
    top = min(top, 5 * usual) if usual > 0 else top
    low = 0.0 if 0 <= low < top / 2 else low
    upward = ticks(low, top if top > low else low + 1, most=6)
    bounds = upward[0], max(top + 0.04 * (top - upward[0]), upward[1])
    return bounds, written(upward, *bounds)


def _log_axis(points: Sequence[Point]) -> tuple[tuple[float, float], list[tuple[float, str]]]:
    """Range and ticks in powers of ten, of losses that are all positive."""
    low, high = (math.log10(edge(y for _, y in points)) for edge in (min, max))
    bounds = low - 0.04 * (high - low + 0.1), high + 0.04 * (high - low + 0.1)
    powers = range(math.floor(low) - 1, math.ceil(high) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        places = [(m * 10.0**power, f"{m * 10.0**power:g}") for power in powers for m in steps]
        upward = [(math.log10(v), t) for v, t in places if bounds[0] <= math.log10(v) <= bounds[1]]
        if len(upward) >= 4:
            return bounds, upward
    places = written(ticks(10 ** bounds[0], 10 ** bounds[1], most=6), 10**low, 10 ** bounds[1])
    return bounds, [(math.log10(value), text) for value, text in places]


def _drawn(lines: _Lines, frame: Frame, scale: Callable[[float], float]) -> str:
    """The lines of a run, thin below thick."""
    style = _colour(lines.index)

    def place(point: Point) -> Point:
        return frame.at_x(point[0]), frame.at_y(scale(point[1]))

    def line(points: Sequence[Point], kind: str) -> str:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in map(place, thin(points)))
        return f'<path class="line {kind} {style}" d="M{path}"/>' if path else ""

    dots = "".join(
        f'<circle class="sampled {style}" cx="{x:.1f}" cy="{y:.1f}" r="1.8"/>'
        for x, y in map(place, thin(lines.interval, 100))
    )
    markers = "".join(
        _marker(lines.index, *place((x, y)), f"{lines.name} at {count(x)}: {loss(y)}")
        for x, y in thin(lines.val, 60)
    )
    return line(lines.train, "faint") + dots + line(lines.val, "strong") + markers


def _direct_labels(runs: Sequence[_Lines], frame: Frame, scale: Callable[[float], float]) -> str:
    """Names at the right, each beside the end of its line, moved apart where they would overlap."""
    ends = [(one, (one.val or one.interval or one.train)[-1:]) for one in runs]
    placed = sorted(
        (frame.at_y(scale(points[0][1])), frame.at_x(points[0][0]), one.index, one.name)
        for one, points in ends
        if points
    )
    step, floor = 17.0, frame.height - frame.bottom
    placed = placed[: int((floor - frame.top) / step)]
    lowest, heights = frame.top - step, []
    for y, *_ in placed:
        lowest = max(y, lowest + step)
        heights.append(lowest)
    for back in range(1, len(heights) + 1):
        floor = min(floor, heights[-back])
        heights[-back], floor = floor, floor - step
    edge = frame.width - frame.right
    return "".join(
        f'<path class="leader" d="M{x + 6:.1f} {y:.1f}L{max(edge, x + 6):.1f} {y:.1f}'
        f'L{edge + 14:.1f} {at:.1f}"/>{_marker(index, edge + 22, at)}'
        f'<text class="name" x="{edge + 32:.1f}" y="{at + 4:.1f}">{esc(cut(name, 20))}</text>'
        for (y, x, index, name), at in zip(placed, heights)
    )


def cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


# Every colour has a contrast of 3 to 1 or more against the card it is drawn on.
LINES_STYLE = """
:root { --c0: #0a66ad; --c1: #c4500a; --c2: #1a7f5a; --c3: #8e44ad; --c4: #8a6d00; --c5: #b5257a;
  --c6: #0b7d8c; --c7: #5a646f; }
@media (prefers-color-scheme: dark) {
  :root { --c0: #62b4f0; --c1: #f2a154; --c2: #5fcf9f; --c3: #c79bf2; --c4: #d9c04a;
    --c5: #f58bc0; --c6: #4fc9d8; --c7: #a2acb6; }
}
@media print {
  :root { --c0: #0a66ad; --c1: #c4500a; --c2: #1a7f5a; --c3: #8e44ad; --c4: #8a6d00;
    --c5: #b5257a; --c6: #0b7d8c; --c7: #5a646f; }
}
svg .c0 { --run: var(--c0); } svg .c1 { --run: var(--c1); } svg .c2 { --run: var(--c2); }
svg .c3 { --run: var(--c3); } svg .c4 { --run: var(--c4); } svg .c5 { --run: var(--c5); }
svg .c6 { --run: var(--c6); } svg .c7 { --run: var(--c7); }
svg .line[class*=" c"] { stroke: var(--run); }
svg .line.d1 { stroke-dasharray: 7 4; } svg .line.d2 { stroke-dasharray: 2 4; }
svg .faint { stroke-width: 1; opacity: 0.6; }
svg .strong { stroke-width: 2.25; }
svg .sampled { fill: var(--run); }
svg .dot[class*=" c"] { stroke: var(--run); }
svg .leader { fill: none; stroke: var(--base); stroke-width: 1; stroke-dasharray: 1 3; }
svg .name { fill: var(--ink); }
svg.swatch { width: 26px; height: 12px; display: inline-block; margin-right: 6px; }
"""
"""Colours, lines, markers and names of the runs."""

PLOT_STYLE = """\
.plot .card { overflow-x: auto; }
.plot svg.wide { min-width: 640px; }
.plot.logarithmic, #logarithmic:checked ~ .plot.linear { display: none; }
#logarithmic:checked ~ .plot.logarithmic { display: block; }
[role="group"] > label { margin: 0 18px 0 6px; cursor: pointer; }
[role="group"] > .plot { margin-top: 12px; }
"""
"""The two drawings and the switch between them."""
