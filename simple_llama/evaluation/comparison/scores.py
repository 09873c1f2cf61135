"""The scores of a run, how they are written, and whether those of several may be compared.

Losses are in nats per supervised token, accuracies and exact matches are shares from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from simple_llama.evaluation.comparison.runs import Run
from simple_llama.pages.numbers import count, decimal, finite, number, percent

Format = Callable[[float | None], str]
Best = Callable[[Iterable[float]], float]


def loss(value: float | None) -> str:
    """Format a loss with four decimals, in which good runs differ."""
    known = finite(value)
    return f"{known:.4f}" if known is not None and 1e-3 <= abs(known) < 100 else decimal(value)


SCORES: tuple[tuple[str, str, Format, Best | None, str], ...] = (
    ("Loss", "val_loss", loss, min, "tokens"),
    ("Loss of the base model", "base_val_loss", loss, None, ""),
    ("Perplexity", "val_perplexity", decimal, min, "tokens"),
    ("Token accuracy", "val_token_accuracy", percent, max, "tokens"),
    ("Exact match", "exact_match", percent, max, "replies"),
)
"""Label, key in reports/eval.json, format, which value is best, and what has to be equal before
values may be compared (see `comparable`)."""

MAIN = ("val_loss", "exact_match")
"""Keys of the scores that the page's first sentence and its categories show."""


def _count(values: Mapping[str, Any], key: str) -> str:
    known = number(values, key)
    return "" if known is None else count(known)


# What a run was evaluated on; what it was trained on.
EVALUATED_ON: dict[str, Callable[[Run], str]] = {
    "Evaluated data": lambda run: str(run.scores.get("data") or ""),
    "Evaluated file, MD5": lambda run: run.evaluated if run.scores else "",
    "Evaluated examples": lambda run: _count(run.scores, "examples"),
    "Evaluated reply tokens": lambda run: _count(run.scores, "supervised_tokens"),
    "Replies scored for exact match": lambda run: _count(run.scores, "exact_match_examples"),
}
TRAINED_ON: dict[str, Callable[[Run], str]] = {
    "Conversations in the data": lambda run: _count(run.prepare, "examples"),
    "Kept": lambda run: _count(run.prepare, "kept"),
    "For training": lambda run: _count(run.prepare, "train"),
    "For validation": lambda run: _count(run.prepare, "val"),
    "Examples trained on": lambda run: _count(run.train, "examples"),
}


def differing_facts(runs: Sequence[Run], facts: Mapping[str, Callable[[Run], str]]) -> list[str]:
    """Labels of the facts in which the runs differ; a run that lacks a fact does not count."""
    found = {label: {fact(run) for run in runs} - {""} for label, fact in facts.items()}
    return [label for label, values in found.items() if len(values) > 1]


def comparable(runs: Sequence[Run]) -> set[str]:
    """Which scores may be compared: `tokens` (losses, accuracies), `replies` (exact matches)."""
    differ = set(differing_facts(runs, EVALUATED_ON))
    if differ & set(list(EVALUATED_ON)[:3]):
        return set()
    basis = {"tokens": "Evaluated reply tokens", "replies": "Replies scored for exact match"}
    return {name for name, label in basis.items() if label not in differ}


def ranked(
    runs: Sequence[Run], keys: Sequence[str] = ()
) -> list[tuple[str, str, Format, Best | None]]:
    """SCORES, or those of the keys; where values may not be compared, none is the best."""
    basis = comparable([run for run in runs if run.has_current_scores])
    return [
        (label, key, form, best if needed in basis else None)
        for label, key, form, best, needed in SCORES
        if not keys or key in keys
    ]
