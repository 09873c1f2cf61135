"""Numbers as a reader sees them, and reading them from reports whose keys may be absent."""

import math
from collections.abc import Mapping
from typing import Any

from simple_llama.brief import brief
from simple_llama.brief import passes as known_passes

MISSING = "–"
"""Stands for a value that is absent."""


def number(values: Mapping[str, Any], key: str) -> float | None:
    """Return `values[key]` as a float (perhaps NaN or infinite), None if it is no number."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def finite(value: float | None) -> float | None:
    """Return a finite number as it is, None for everything else."""
    return value if value is not None and math.isfinite(value) else None


def share(value: float | None, whole: float | None) -> float:
    """Return how much of `whole` a value is, from 0 to 1; 0 where either is unknown."""
    part, all_of_it = finite(value), finite(whole)
    if part is None or all_of_it is None or all_of_it <= 0:
        return 0.0
    return min(1.0, max(0.0, part / all_of_it))


def decimal(value: float | None) -> str:
    """Format a measured value to about four digits: 0.812, 27.114, 1,204.5, 3e-5."""
    if value is None or not math.isfinite(value):
        return _not_finite(value)
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e6):
        return brief(value, 3)
    return f"{value:.3f}" if size < 100 else f"{value:,.1f}"


def count(value: float | None) -> str:
    """Format a number of things: 12,345."""
    if value is None or not math.isfinite(value):
        return _not_finite(value)
    return f"{value:,.0f}" if abs(value) < 1e15 else brief(value, 3)


def percent(value: float | None) -> str:
    """Format a share (0 to 1) as 61.3%, a tiny one as 0.02%."""
    if value is None or not math.isfinite(value):
        return _not_finite(value)
    if 0 < abs(value) < 1e-3:
        return f"{100 * value:.2g}%"
    return f"{100 * value:.1f}%" if abs(value) < 1e6 else f"{100 * value:.1e}%"


def _not_finite(value: float | None) -> str:
    if value is None:
        return MISSING
    if math.isnan(value):
        return "NaN"
    return "∞" if value > 0 else "−∞"


def passes(value: float | None) -> str:
    """Format passes over the examples as terminals do."""
    known = finite(value)
    return count(value) if known is None or abs(known) >= 1e15 else known_passes(known)


def epochs(value: float | None) -> str:
    """Format passes with their noun: 1 epoch, 2.99 epochs."""
    return f"{passes(value)} epoch{'' if value == 1 else 's'}"


def things(value: float | None, singular: str, plural: str | None = None) -> str:
    """Count with the noun in its right form: 1 epoch, 3 epochs."""
    return f"{count(value)} {singular if value == 1 else plural or singular + 's'}"
