"""The tuned model's scores against the base model's: headline cards and the table of categories.

Losses are in nats per supervised token, accuracies and exact matches are shares from 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from simple_llama.evaluation.charts import pair_bars
from simple_llama.evaluation.page import (
    count,
    decimal,
    esc,
    finite,
    folded,
    number,
    percent,
    section,
    table,
    things,
)
from simple_llama.params import VALIDATION_SPLIT, is_validation_split

CATEGORIES_SHOWN = 20
"""Categories in the open table; the rest is folded away."""


def loss_name(values: Mapping[str, Any]) -> str:
    """Name the loss after the data it was measured on; `eval_json_path` names a held-out file."""
    split = is_validation_split(values.get("eval_json_path", VALIDATION_SPLIT))
    return "Validation loss" if split else "Held-out loss"


def headline(scores: Mapping[str, Any], loss_label: str = "Validation loss") -> str:
    """Lay the main numbers out, tuned against base."""
    base_loss, loss = number(scores, "base_val_loss"), number(scores, "val_loss")
    base_match, match = number(scores, "base_exact_match"), number(scores, "exact_match")
    scored = number(scores, "exact_match_examples")
    cards = (
        _loss_card(loss_label, base_loss, loss, "Nats per token, lower is better."),
        _loss_card(
            "Perplexity",
            _exp(base_loss),
            number(scores, "val_perplexity"),
            "e to the power of the loss.",
        ),
        _share_card(
            "Token accuracy",
            number(scores, "base_token_accuracy"),
            number(scores, "val_token_accuracy"),
            f"Of {things(number(scores, 'supervised_tokens'), 'reply token')}.",
        ),
        _share_card("Exact match", base_match, match, _match_note(match, scored)),
    )
    return '<div class="grid">' + "\n".join(cards) + "</div>"


def _exp(loss: float | None) -> float | None:
    if loss is None or math.isnan(loss):
        return loss
    return math.exp(loss) if loss < 700 else math.inf


def _loss_card(label: str, base: float | None, tuned: float | None, note: str) -> str:
    before, after, change = finite(base), finite(tuned), ""
    if before and after is not None:
        share = (after - before) / abs(before)
        change = _change(-share, f"{abs(100 * share):.1f}% {'lower' if share < 0 else 'higher'}")
    full = max(before or 0.0, after or 0.0)
    return _card(
        label, note, (decimal(base), decimal(tuned)), change + pair_bars(base, tuned, full)
    )


def _share_card(label: str, base: float | None, tuned: float | None, note: str) -> str:
    before, after, change = finite(base), finite(tuned), ""
    if before is not None and after is not None:
        points = 100 * (after - before)
        change = _change(points, f"{points:+.1f} points".replace("-", "−"))
    return _card(label, note, (percent(base), percent(tuned)), change + pair_bars(base, tuned, 1.0))


def _change(gain: float, text: str) -> str:
    if abs(gain) < 5e-4:
        return '<p class="note">no change</p>'
    verdict = "better" if gain > 0 else "worse"
    return f'<p class="note {verdict}">{esc(text)}, {verdict}</p>'


def _card(label: str, note: str, values: tuple[str, str], comparison: str) -> str:
    base, tuned = values
    return (
        f'<div class="card"><p class="label">{esc(label)}</p><p class="big">{tuned}</p>'
        f'<p class="note">base {base}</p>{comparison}<p class="note">{esc(note)}</p></div>'
    )


def _match_note(match: float | None, scored: float | None) -> str:
    match, scored = finite(match), finite(scored)
    if match is None or not scored or scored < 0:
        return "No reference answer was short enough to be scored."
    low, high = wilson_interval(match, scored)
    return f"Of {things(scored, 'short answer')}; 95% interval {percent(low)} to {percent(high)}."


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


def categories(scores: Mapping[str, Any]) -> str:
    """Compare base and tuned model in each category, the most frequent first."""
    found: Mapping[str, Mapping[str, Any]] = scores.get("by_category") or {}
    ordered = sorted(found.items(), key=lambda item: (-(number(item[1], "examples") or 0), item[0]))
    if not ordered:
        return section("By category", '<p class="soft">No categories were evaluated.</p>')
    losses = (finite(number(row, key)) for row in found.values() for key in _LOSSES)
    full = max((loss for loss in losses if loss is not None), default=0.0)
    rows = [_category(name, row, full) for name, row in ordered]
    shown = table(_CATEGORY_HEAD, rows[:CATEGORIES_SHOWN], caption="Scores by category")
    rest = rows[CATEGORIES_SHOWN:]
    more = folded(
        things(len(rest), "further category", "further categories"),
        table(_CATEGORY_HEAD, rest, caption="Further categories"),
    )
    return section(
        "By category",
        '<p class="note">In each pair of bars the base model is above in grey, the tuned model '
        "below in blue.</p>",
        shown,
        more if rest else "",
    )


_LOSSES = ("val_loss", "base_val_loss")

_CATEGORY_HEAD = (
    '<tr><th scope="col" rowspan="2">Category</th><th scope="col" rowspan="2">Examples</th>'
    '<th scope="colgroup" colspan="3" class="group">Loss (nats per token)</th>'
    '<th scope="colgroup" colspan="4" class="group">Exact match</th></tr>'
    '<tr><td></td><th scope="col">base</th><th scope="col">tuned</th>'
    '<td></td><th scope="col">base</th><th scope="col">tuned</th><th scope="col">scored</th></tr>'
)


def _category(name: str, row: Mapping[str, Any], full: float) -> str:
    base, tuned = number(row, "base_val_loss"), number(row, "val_loss")
    base_match, match = number(row, "base_exact_match"), number(row, "exact_match")
    cells = (
        (count(number(row, "examples")), ""),
        (pair_bars(base, tuned, full), ' class="bar"'),
        (decimal(base), ""),
        (decimal(tuned), ""),
        (pair_bars(base_match, match, 1.0), ' class="bar"'),
        (percent(base_match), ""),
        (percent(match), ""),
        (count(number(row, "exact_match_examples")), ""),
    )
    return (
        f'<tr><th scope="row">{esc(name)}</th>'
        + "".join(f"<td{style}>{cell}</td>" for cell, style in cells)
        + "</tr>"
    )
