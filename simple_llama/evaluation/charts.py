"""Charts as inline SVG: lines, histogram, pairs of bars. They scale with the page, need no script.

Colours are CSS classes of the page; all lengths here are user units of the SVG (about one pixel).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from simple_llama.evaluation.page import count, decimal, esc, finite, number

Point = tuple[float, float]

MOST_POINTS = 600
"""Points a line is drawn with at most."""

_DRAWABLE = 1e100
"""Larger values count as not finite: their differences would overflow."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart."""

    label: str
    """Name in the legend and in tooltips."""
    points: Sequence[Point]
    """(x, y), finite, ascending in x."""
    style: str
    """CSS class that gives colour and width: raw, smooth, plain or val."""
    dots: bool = False
    """Mark each point with a circle that tells its value, if there are few enough."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A labelled vertical line."""

    x: float
    """Where, in the chart's own unit of x."""
    text: str
    """What stands beside it."""


def finite_points(rows: Sequence[Mapping[str, float]], x: str, y: str) -> list[Point]:
    """Take the columns `x` and `y` of rows, leaving out what cannot be drawn."""
    pairs = ((number(row, x), number(row, y)) for row in rows)
    points = [(a, b) for a, b in pairs if _drawable(a) and _drawable(b)]
    return sorted(((a, b) for a, b in points if a is not None and b is not None), key=_first)


def _drawable(value: float | None) -> bool:
    return value is not None and abs(value) < _DRAWABLE


def _first(point: Point) -> float:
    return point[0]


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Keep at most `most` points so that every peak and dip stays: bucket minima and maxima."""
    if len(points) <= most:
        return list(points)
    buckets = max(1, most // 2)
    kept: list[Point] = []
    for index in range(buckets):
        bucket = points[len(points) * index // buckets : len(points) * (index + 1) // buckets]
        low, high = min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])
        kept += sorted({low, high})
    return kept


def smooth(points: Sequence[Point], most: int = MOST_POINTS // 2) -> list[Point]:
    """Average over a centred window of 4% of the points, at `most` evenly spread places."""
    total = len(points)
    if total <= 2:
        return list(points)
    sums = [0.0, *accumulate(y for _, y in points)]
    reach = max(2, total // 50)
    places = min(total, most)
    line: list[Point] = []
    for place in range(places):
        middle = (total - 1) * place // (places - 1)
        start, end = max(0, middle - reach), min(total, middle + reach + 1)
        line.append((points[middle][0], (sums[end] - sums[start]) / (end - start)))
    return line


def ticks(low: float, high: float, *, most: int = 5, whole: bool = False) -> list[float]:
    """Return up to about `most` round values from at or below `low` to at or above `high`."""
    rough = max((high - low) / most, abs(high) * 1e-9, 1e-300)
    power = 10.0 ** math.floor(math.log10(rough))
    round_ones = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    step = next(power * m for m in round_ones if power * m >= rough * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def written(values: Sequence[float], low: float, high: float) -> list[tuple[float, str]]:
    """Pair those of the evenly spaced ticks that lie in the range with their text."""
    step = values[1] - values[0]
    return [(value, tick_text(value, step)) for value in values if low <= value <= high]


def tick_text(value: float, step: float) -> str:
    """Write a tick with as many decimals as the steps between ticks need: 0.25, 1,000, 3e-5."""
    if value == 0:
        return "0"
    if step < 1e-3 or abs(value) >= 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    digits = next((d for d in range(4) if math.isclose(round(step, d), step, rel_tol=1e-6)), 4)
    return f"{value:,.{digits}f}"


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The plotting area of a chart and its two scales."""

    width: float
    height: float
    x: tuple[float, float]
    """Range of x shown."""
    y: tuple[float, float]
    """Range of y shown; values outside are drawn at the edge."""
    left: float = 50
    right: float = 14
    top: float = 22
    bottom: float = 42

    def at_x(self, value: float) -> float:
        low, high = self.x
        return self.left + (self.width - self.left - self.right) * (value - low) / (high - low)

    def at_y(self, value: float) -> float:
        low, high = self.y
        share = (min(max(value, low), high) - low) / (high - low)
        return self.height - self.bottom - (self.height - self.bottom - self.top) * share

    def axes(
        self,
        x: Sequence[tuple[float, str]],
        y: Sequence[tuple[float, str]],
        x_label: str,
        y_label: str,
    ) -> str:
        """Draw grid, ticks as (place, text) and the names of the axes."""
        floor = self.height - self.bottom
        parts = [
            f'<line class="grid-line" x1="{self.left:g}" x2="{self.width - self.right:g}" '
            f'y1="{self.at_y(v):.1f}" y2="{self.at_y(v):.1f}"/>'
            f'<text x="{self.left - 8:g}" y="{self.at_y(v) + 4:.1f}" text-anchor="end">'
            f"{esc(t)}</text>"
            for v, t in y
        ]
        parts += [
            f'<text x="{self.at_x(v):.1f}" y="{floor + 17:g}" text-anchor="middle">{esc(t)}</text>'
            for v, t in x
        ]
        parts.append(
            f'<text x="{self.width - self.right:g}" y="{self.height - 5:g}" text-anchor="end">'
            f"{esc(x_label)}</text>"
            f'<text x="{self.left:g}" y="12">{esc(y_label)}</text>'
        )
        return "".join(parts)

    def mark(self, mark: Mark, *, line: int = 0) -> str:
        """Draw a mark, its text on the side with more room and `line` lines down."""
        x = self.at_x(min(max(mark.x, self.x[0]), self.x[1]))
        before = x > (self.left + self.width - self.right) / 2
        return (
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{self.top:g}" '
            f'y2="{self.height - self.bottom:g}"/>'
            f'<text class="mark-text" x="{x + (-6 if before else 6):.1f}" '
            f'y="{self.top + 12 + 21 * line:g}" text-anchor="{"end" if before else "start"}">'
            f"{esc(mark.text)}</text>"
        )


def figure(
    *,
    title: str,
    description: str,
    size: tuple[float, float],
    drawing: str,
    legend: str = "",
    note: str = "",
) -> str:
    """Frame a finished drawing with its heading, spoken description, legend and a note."""
    wide = ' class="wide"' if size[0] > 400 else ""
    return (
        f'<figure class="card"><figcaption><h3>{esc(title)}</h3>{legend}</figcaption>'
        f'<svg{wide} viewBox="0 0 {size[0]:g} {size[1]:g}" role="img" '
        f'aria-label="{esc(title)}. {esc(description)}">'
        f"<title>{esc(title)}</title><desc>{esc(description)}</desc>{drawing}</svg>"
        + (f'<p class="note">{esc(note)}</p>' if note else "")
        + "</figure>"
    )


def line_chart(
    *,
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    size: tuple[float, float] = (680, 395),
    mark: Mark | None = None,
    note: str = "",
) -> str:
    """Draw lines over a common whole-numbered x (such as optimizer steps)."""
    shown = [one for one in series if one.points]
    if not shown:
        return nothing(title)
    xs = [x for one in shown for x, _ in one.points]
    ys = [y for one in shown for _, y in one.points]
    left, right = min(xs), max(xs)
    if left == right:
        left, right = left - 1, right + 1
    if 0 < left < 0.05 * right:
        left = 0.0
    low, high = min(ys), max(ys)
    top = _ceiling(ys, starts=[one.points[0][1] for one in shown])
    if 0 <= low < top / 2:
        low = 0.0
    if low == top:
        low, top = low - 0.5 * (abs(low) or 1), top + 0.5 * (abs(top) or 1)
    narrow = size[0] <= 400
    upward = ticks(low, top, most=3 if narrow else 6)
    across = ticks(left, right, most=4 if narrow else 6, whole=True)
    bounds = _bounds(upward, top)
    if high > bounds[1]:
        note = f"{note} Values above {decimal(bounds[1])} are drawn at the upper edge.".strip()
    frame = Frame(width=size[0], height=size[1], x=(left, right), y=bounds)
    drawing = frame.axes(written(across, left, right), written(upward, *bounds), x_label, y_label)
    drawing += "".join(_line(frame, one) for one in shown)
    drawing += frame.mark(mark) if mark else ""
    legend = "".join(_legend(one) for one in shown) if len(shown) > 1 else ""
    description = " ".join(_in_words(one) for one in shown) + (f" {mark.text}." if mark else "")
    return figure(
        title=title, description=description, size=size, drawing=drawing, legend=legend, note=note
    )


def _ceiling(values: Sequence[float], starts: Sequence[float]) -> float:
    """Top of the y axis: the maximum, unless a few outliers would flatten everything else.

    Where the lines start is always shown: a loss that falls steeply at first is no outlier.
    """
    ordered = sorted(values)
    usual = ordered[int(0.95 * (len(ordered) - 1))]
    return min(ordered[-1], max(5 * usual, *starts)) if usual > 0 else ordered[-1]


def _bounds(upward: Sequence[float], top: float) -> tuple[float, float]:
    """Range of y: from the lowest tick to a little above the data, at least to the second tick."""
    return upward[0], max(top + 0.04 * (top - upward[0]), upward[1])


def _line(frame: Frame, series: Series) -> str:
    points = thin(series.points)
    places = [(frame.at_x(x), frame.at_y(y)) for x, y in points]
    path = "".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(places))
    drawn = f'<path class="line {esc(series.style)}" d="{path}"/>'
    if not (series.dots and len(points) <= 60) and len(points) > 1:
        return drawn
    return drawn + "".join(
        f'<circle class="dot {esc(series.style)}" cx="{a:.1f}" cy="{b:.1f}" r="3.5">'
        f"<title>{esc(series.label)} at {count(x)}: {decimal(y)}</title></circle>"
        for (x, y), (a, b) in zip(points, places, strict=True)
    )


def _legend(series: Series) -> str:
    dot = f'<circle class="dot {esc(series.style)}" cx="13" cy="6" r="3.5"/>'
    return (
        '<span class="legend"><svg viewBox="0 0 26 12" aria-hidden="true">'
        f'<path class="line {esc(series.style)}" d="M1 6L25 6"/>{dot if series.dots else ""}</svg>'
        f"{esc(series.label)}</span>"
    )


def _in_words(series: Series) -> str:
    (start, first), (end, last) = series.points[0], series.points[-1]
    least = min(y for _, y in series.points)
    return (
        f"{series.label}: {decimal(first)} at {count(start)}, {decimal(last)} at {count(end)}, "
        f"lowest {decimal(least)}."
    )


def histogram(
    *,
    title: str,
    buckets: Sequence[tuple[int, int, int]],
    x_label: str,
    y_label: str,
    marks: Sequence[Mark] = (),
    size: tuple[float, float] = (600, 280),
) -> str:
    """Draw (from, to inclusive, how many) buckets as bars of equal width."""
    bars = _merged(buckets)
    if not bars:
        return nothing(title)
    most = max(1, *(n for _, _, n in bars))
    upward = ticks(0, most, whole=True)
    bounds = _bounds(upward, most)
    frame = Frame(width=size[0], height=size[1], x=(0, len(bars)), y=bounds)
    every = math.ceil(len(bars) / 8)
    edges = [(i, count(bars[i][0])) for i in range(0, len(bars), every)]
    drawing = frame.axes(edges, written(upward, *bounds), x_label, y_label)
    for i, (low, high, many) in enumerate(bars):
        left, right, top = frame.at_x(i) + 1, frame.at_x(i + 1) - 1, frame.at_y(many)
        drawing += (
            f'<rect class="fill-tuned" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{frame.at_y(0) - top:.1f}"><title>{count(low)} to {count(high)}: '
            f"{count(many)}</title></rect>"
        )
    drawing += "".join(
        frame.mark(Mark(x=_bucket_place(bars, mark.x), text=mark.text), line=i)
        for i, mark in enumerate(marks)
    )
    fullest = max(bars, key=lambda bar: bar[2])
    description = (
        f"{count(sum(n for _, _, n in bars))} in all, from {count(bars[0][0])} to "
        f"{count(bars[-1][1])}; most, {count(fullest[2])}, between {count(fullest[0])} and "
        f"{count(fullest[1])}."
    )
    return figure(title=title, description=description, size=size, drawing=drawing)


def _merged(buckets: Sequence[tuple[int, int, int]], most: int = 60) -> list[tuple[int, int, int]]:
    every = max(1, math.ceil(len(buckets) / most))
    groups = [buckets[i : i + every] for i in range(0, len(buckets), every)]
    return [(g[0][0], g[-1][1], sum(max(0, n) for _, _, n in g)) for g in groups]


def _bucket_place(bars: Sequence[tuple[int, int, int]], value: float) -> float:
    """Where a value stands on an axis whose unit is one bucket."""
    for i, (low, high, _) in enumerate(bars):
        if value <= high:
            return i + max(0.0, (value - low) / (high - low + 1))
    return float(len(bars))


def pair_bars(base: float | None, tuned: float | None, full: float) -> str:
    """Draw two thin bars, base above tuned, against a full width that stands for `full`.

    They only illustrate numbers written beside them, so screen readers skip them.
    """
    return (
        '<svg class="bars" viewBox="0 0 100 14" preserveAspectRatio="none" aria-hidden="true">'
        f"{_bar(base, full, 'fill-base', 1)}{_bar(tuned, full, 'fill-tuned', 8)}</svg>"
    )


def share_bar(value: float | None, full: float) -> str:
    """Draw one bar against a full width that stands for `full`."""
    return (
        '<svg class="bars" viewBox="0 0 100 14" preserveAspectRatio="none" aria-hidden="true">'
        f"{_bar(value, full, 'fill-tuned', 4.5)}</svg>"
    )


def _bar(value: float | None, full: float, style: str, top: float) -> str:
    known = finite(value)
    share = min(1.0, max(0.0, known / full)) if known is not None and full > 0 else 0.0
    return (
        f'<rect class="fill-track" x="0" y="{top:g}" width="100" height="5"/>'
        f'<rect class="{style}" x="0" y="{top:g}" width="{100 * share:.2f}" height="5"/>'
    )


def nothing(title: str) -> str:
    """Stand in for a chart without data."""
    return (
        f'<figure class="card"><figcaption><h3>{esc(title)}</h3></figcaption>'
        '<p class="soft">Nothing to draw.</p></figure>'
    )
