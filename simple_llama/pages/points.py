"""The points of a line: read from rows, thinned and smoothed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simple_llama.pages.numbers import number

Points = np.ndarray[Any, np.dtype[np.float64]]
"""(N, 2): x and y, finite, ascending in x."""

MOST_POINTS = 600
"""Points a line is drawn with at most."""

_DRAWABLE = 1e100
"""Larger values count as not finite: their differences would overflow."""


def finite_points(rows: Sequence[Mapping[str, float]], x: str, y: str) -> Points:
    """Take the columns `x` and `y` of rows, leaving out what cannot be drawn."""
    pairs = [(number(row, x), number(row, y)) for row in rows]
    points = np.array([pair for pair in pairs if None not in pair], np.float64).reshape(-1, 2)
    points = points[(np.abs(points) < _DRAWABLE).all(axis=1)]  # NaN is not
    return points[np.lexsort(points.T[::-1])]


def thin(points: Points, most: int = MOST_POINTS) -> Points:
    """Keep at most `most` points so that every peak and dip stays: minima and maxima of parts."""
    if len(points) <= most:
        return points
    heights = points[:, 1]
    parts = np.array_split(np.arange(len(points)), most // 2)
    kept = [(part[heights[part].argmin()], part[heights[part].argmax()]) for part in parts]
    return points[np.unique(kept)]


def smooth(points: Points, most: int = MOST_POINTS // 2) -> Points:
    """Average over a centred window of 4% of the points, at `most` evenly spread places."""
    total = len(points)
    if total <= 2:
        return points
    sums = np.concatenate([[0.0], np.cumsum(points[:, 1])])
    reach = max(2, total // 50)
    places = np.linspace(0, total - 1, min(total, most)).astype(int)
    start, end = np.maximum(0, places - reach), np.minimum(total, places + reach + 1)
    return np.column_stack([points[places, 0], (sums[end] - sums[start]) / (end - start)])
