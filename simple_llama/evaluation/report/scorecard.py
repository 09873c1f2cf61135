"""The tuned model's scores against the base model's: headline cards and rows by category.

Losses are in nats per supervised token, accuracies and exact matches are shares from 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from simple_llama.pages.numbers import finite, number, percent, things
from simple_llama.params.evaluate import VALIDATION_SPLIT, is_validation_split

CATEGORIES_SHOWN = 20
"""Categories in the open table; the rest is folded away."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A score of both models, side by side."""

    label: str
    base: float | None
    tuned: float | None
    note: str
    is_loss: bool = False
    """Lower is better, in any unit. Else a share from 0 to 1, of which more is better."""

    @property
    def full(self) -> float:
        """What a bar of full length stands for."""
        return max(finite(self.base) or 0.0, finite(self.tuned) or 0.0) if self.is_loss else 1.0

    @property
    def change(self) -> tuple[str, str]:
        """What the training changed in words, and `better`, `worse` or nothing."""
        base, tuned = finite(self.base), finite(self.tuned)
        if base is None or tuned is None or (self.is_loss and base == 0):
            return "", ""
        gain = (base - tuned) / abs(base) if self.is_loss else tuned - base
        verdict = "better" if gain > 0 else "worse"
        if abs(gain) < 5e-4:
            return "no change", ""
        if self.is_loss:
            return f"{abs(gain):.1%} {'lower' if gain > 0 else 'higher'}, {verdict}", verdict
        return f"{100 * gain:+.1f} points, {verdict}".replace("-", "−"), verdict


def loss_name(params: Mapping[str, Any]) -> str:
    """Name the loss after the data it was measured on; `eval_json_path` names a held-out file."""
    split = is_validation_split(params.get("eval_json_path", VALIDATION_SPLIT))
    return "Validation loss" if split else "Held-out loss"


def cards(scores: Mapping[str, Any], loss_label: str = "Validation loss") -> list[Card]:
    """Compare the main scores of reports/eval.json."""
    base_loss, match = number(scores, "base_val_loss"), number(scores, "exact_match")
    return [
        Card(
            label=loss_label,
            base=base_loss,
            tuned=number(scores, "val_loss"),
            note="Nats per token, lower is better.",
            is_loss=True,
        ),
        Card(
            label="Perplexity",
            base=_exp(base_loss),
            tuned=number(scores, "val_perplexity"),
            note="e to the power of the loss; 1 would be perfect.",
            is_loss=True,
        ),
        Card(
            label="Token accuracy",
            base=number(scores, "base_token_accuracy"),
            tuned=number(scores, "val_token_accuracy"),
            note="Share that is the model's first choice, of "
            f"{things(number(scores, 'supervised_tokens'), 'reply token')}.",
        ),
        Card(
            label="Exact match",
            base=number(scores, "base_exact_match"),
            tuned=match,
            note=_match_note(match, number(scores, "exact_match_examples")),
        ),
    ]


def _exp(loss: float | None) -> float | None:
    if loss is None or math.isnan(loss):
        return loss
    return math.exp(loss) if loss < 700 else math.inf


def _match_note(match: float | None, scored: float | None) -> str:
    match, scored = finite(match), finite(scored)
    if match is None or not scored or scored < 0:
        return "No reference answer was short enough to be scored."
    low, high = wilson_interval(match, scored)
    return (
        f"Share equal to the reference, of {things(scored, 'short answer')}; "
        f"95% interval {percent(low)} to {percent(high)}."
    )


def wilson_interval(share: float, trials: float) -> tuple[float, float]:
    """Return the 95% interval of a share seen in so many trials; sane at 0, at 1 and for few."""
    z2 = 1.96**2 / trials
    middle = (share + z2 / 2) / (1 + z2)
    reach = math.sqrt(max(0.0, share * (1 - share) * z2 + z2 * z2 / 4)) / (1 + z2)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def moved(before: float | None, after: float | None, form: Callable[[float | None], str]) -> str:
    """Say in words how a number changed, as `form` writes it."""
    if finite(after) is None or finite(before) is None or before is None or after is None:
        return "was not measured" if after is None else f"is {form(after)}"
    if form(before) == form(after):
        return f"stayed at {form(after)}"
    return f"{'fell' if after < before else 'rose'} from {form(before)} to {form(after)}"


def categories(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The scores of each category of reports/eval.json, the most frequent category first."""
    keys = {
        "examples": "examples",
        "base_loss": "base_val_loss",
        "loss": "val_loss",
        "base_match": "base_exact_match",
        "match": "exact_match",
        "scored": "exact_match_examples",
    }
    rows = [
        {"name": name, **{short: number(row, key) for short, key in keys.items()}}
        for name, row in (scores.get("by_category") or {}).items()
    ]
    return sorted(rows, key=lambda row: (-(row["examples"] or 0), row["name"]))
