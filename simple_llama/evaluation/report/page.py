"""The report of one fine-tuning run as a single page that opens anywhere (models/report.html).

The same input gives the same bytes: no time, machine, run id or speed stands in it.
Losses are in nats per supervised token, rates and accuracies are shares from 0 to 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simple_llama.brief import brief
from simple_llama.evaluation.report.scorecard import (
    CATEGORIES_SHOWN,
    cards,
    categories,
    loss_name,
    moved,
)
from simple_llama.pages.charts import Chart, Mark, Series, histogram, line_chart
from simple_llama.pages.numbers import count, epochs, finite, number, percent, things
from simple_llama.pages.points import finite_points, smooth
from simple_llama.pages.template import fill

SAMPLES_SHOWN = 12
"""Samples in the open; the rest is folded away."""

CATEGORIES_FILTERED = 50
"""Categories by which samples can be filtered."""

SAMPLES_KEPT = 100
"""Samples in the page at all."""

SMOOTHED_FROM = 30
"""Steps: a mean over some of fewer would hide the curve."""

REASONS_SHOWN = 12
"""Reasons for rejection listed singly."""


@dataclass(frozen=True, kw_only=True)
class ReportInput:
    """All the page shows. Absent keys are shown as absent."""

    prepare: Mapping[str, Any]
    """reports/prepare.json, and `val_prompts_like_train`: share of validation prompts that differ
    from a training prompt only in digits or names."""
    tokenize: Mapping[str, Any]
    """reports/tokenize.json; lengths in tokens."""
    train: Mapping[str, Any]
    """reports/train.json."""
    evaluation: Mapping[str, Any]
    """reports/eval.json; exact matches are None where nothing was scored."""
    train_curve: Sequence[Mapping[str, float]]
    """Rows of step, epoch, loss, lr, grad_norm."""
    val_curve: Sequence[Mapping[str, float]]
    """Rows of step, loss."""
    lengths: Sequence[tuple[int, int, int]]
    """Histogram of example lengths: (from tokens, to tokens inclusive, examples)."""
    supervised: tuple[float | None, float | None]
    """Supervised tokens of the training split, of so many tokens."""
    samples: Sequence[Mapping[str, Any]]
    """category, prompt, reference, base, tuned, match and base_match (None: not scored)."""
    worst: Sequence[Mapping[str, Any]]
    """Examples with the highest loss: id, category, loss, base_loss, tokens, prompt, reference."""
    params: Mapping[str, Any]
    """The keys of params.yaml."""
    facts: Mapping[str, str]
    """What was trained on what: label to text."""


def render(report: ReportInput) -> str:
    """Write the page."""
    rows = categories(report.evaluation)
    losses = (finite(row[key]) for row in rows for key in ("loss", "base_loss"))
    groups = list(dict.fromkeys(str(row["category"]) for row in report.samples if row["category"]))
    groups = groups[:CATEGORIES_FILTERED]
    return fill(
        "evaluation/report/page.html.jinja",
        report=report,
        loss_name=loss_name(report.params),
        moved=moved,
        seen=_seen(report),
        cards=cards(report.evaluation, loss_name(report.params)),
        loss_curves=_loss_curves(report),
        lr_curve=_small_chart(report.train_curve, "Learning rate", "lr"),
        norm_curve=_small_chart(report.train_curve, "Gradient norm", "grad_norm"),
        categories=rows,
        CATEGORIES_SHOWN=CATEGORIES_SHOWN,
        highest_loss=max((loss for loss in losses if loss is not None), default=0.0),
        lengths=_lengths(report),
        supervised=_supervised(report),
        unmerged=bool(number(report.params, "lora_rank")),
        partly_seen=_partly_seen(report),
        ledger=_ledger(report.prepare, report.tokenize, report.train),
        not_counted=_not_counted(report.prepare),
        adds_up=_adds_up(report.prepare),
        groups=groups,
        samples=[_sample(row, groups) for row in report.samples[:SAMPLES_KEPT]],
        SAMPLES_SHOWN=SAMPLES_SHOWN,
        most_tokens=_most_tokens(report.params),
        samples_cut=max(0, len(report.samples) - SAMPLES_KEPT),
        params={key: _param(value) for key, value in report.params.items()},
    )


def _loss_curves(report: ReportInput) -> Chart:
    loss = finite_points(report.train_curve, "step", "loss")
    val = finite_points(report.val_curve, "step", "loss")
    best = finite(number(report.train, "best_step"))
    training = [Series(label="training, each step", points=loss, style="smooth")]
    if len(loss) >= SMOOTHED_FROM:
        training = [
            Series(label="training, each step", points=loss, style="raw"),
            Series(label="training, smoothed", points=smooth(loss), style="smooth"),
        ]
    return line_chart(
        title="Loss",
        series=[
            *training,
            Series(label="validation", points=val, style="val", marker="o"),
        ],
        x_label="optimizer step",
        y_label="nats per token",
        mark=Mark(x=best, text=f"best: step {count(best)}") if best is not None else None,
        note=_left_out(len(report.train_curve) + len(report.val_curve) - len(loss) - len(val)),
    )


def _small_chart(rows: Sequence[Mapping[str, float]], title: str, key: str) -> Chart:
    points = finite_points(rows, "step", key)
    return line_chart(
        title=title,
        series=[Series(label=title, points=points, style="plain")],
        x_label="optimizer step",
        size=(330, 160),
        note=_left_out(len(rows) - len(points)),
    )


def _left_out(missing: int) -> str:
    if not missing:
        return ""
    return f"{things(missing, 'value')} {'is' if missing == 1 else 'are'} absent or not finite."


def _lengths(report: ReportInput) -> Chart:
    known = [
        (share, value)
        for share, key in (("half", "length_p50"), ("95%", "length_p95"))
        if (value := finite(number(report.tokenize, key))) is not None
    ]
    said = " and ".join(f"{share} have at most {count(value)}" for share, value in known)
    return histogram(
        title="Tokens per example",
        buckets=report.lengths,
        x_label="tokens",
        y_label="examples",
        marks=[Mark(x=value, text=f"{share}: {count(value)}") for share, value in known],
        note=f"Of the examples, {said} tokens." if said else "",
    )


def _supervised(report: ReportInput) -> str:
    """What the loss counts of the training split, whether or not a step saw all of it."""
    part, whole = report.supervised
    share = percent(part / whole if part is not None and whole else None)
    return f"{things(part, 'token')} of {count(whole)} ({share})"


def _partly_seen(report: ReportInput) -> bool:
    seen, whole = number(report.train, "examples"), number(report.tokenize, "train_examples")
    return seen is not None and whole is not None and seen < whole


def _seen(report: ReportInput) -> str:
    """What the training saw, as its own record says."""
    train, limit = report.train, number(report.params, "max_train_examples")
    seen, whole = number(train, "examples"), number(report.tokenize, "train_examples")
    if seen is None:
        return ""
    of = "" if whole is None or seen >= whole else f"{count(seen)} of "
    steps = f"{things(number(train, 'steps'), 'step')}, {epochs(number(train, 'epochs'))}"
    steps += f" of {count(limit)}" if of and limit else ""
    return f" on {of}{things(whole if of else seen, 'training example')} ({steps})"


def _ledger(
    prepare: Mapping[str, Any], tokens: Mapping[str, Any], train: Mapping[str, Any]
) -> list[tuple[str, float | None, str]]:
    """Account for every example, from the data to the training: label, number, style."""
    dropped = [
        ("− longer than max_seq_len", number(tokens, "dropped_too_long")),
        ("− refused by the prompt format", number(tokens, "dropped_refused")),
        ("− train no reply", number(tokens, "dropped_untrained")),
    ]
    whole, seen = number(tokens, "train_examples"), number(train, "examples")
    repeated, unseen = number(prepare, "repeated"), (whole or 0.0) - (seen or 0.0)
    known = [whole, number(tokens, "val_examples"), *(many or 0.0 for _, many in dropped)]
    before = [number(prepare, "train"), number(prepare, "val"), repeated or 0.0]
    further = _sum(known) - _sum(before)
    return [
        ("In the data", number(prepare, "examples"), "sum"),
        ("− rejected", number(prepare, "rejected"), ""),
        *((reason, many, "part") for reason, many in _reasons(prepare)),
        ("− duplicates", number(prepare, "duplicates"), ""),
        ("= kept", number(prepare, "kept"), "sum"),
        ("for training", number(prepare, "train"), "part"),
        ("for validation", number(prepare, "val"), "part"),
        *([("+ copies by mixture.yaml", repeated, "")] if repeated else []),
        *([("+ from conversations that make several", further, "")] if further > 0 else []),
        *((label, many, "") for label, many in dropped if many or label == dropped[0][0]),
        *([("− seen by no step", unseen, "")] if seen is not None and unseen > 0 else []),
        ("= trained on", seen, "sum"),
        ("= validated on", number(tokens, "val_examples"), "sum"),
    ]


def _sum(numbers: Sequence[float | None]) -> float:
    """NaN where one is unknown."""
    return sum(math.nan if one is None else one for one in numbers)


def _not_counted(prepare: Mapping[str, Any]) -> list[tuple[float, str]]:
    """What the data hold besides: how many, and why they are not counted."""
    reasons = {"left_out": "left out by mixture.yaml", "untrained": "excluded by their own flags"}
    return [(many, why) for key, why in reasons.items() if (many := number(prepare, key))]


def _reasons(prepare: Mapping[str, Any]) -> list[tuple[str, float | None]]:
    found: Mapping[str, Any] = prepare.get("rejected_by_reason") or {}
    reasons = [(str(reason), number(found, reason) or 0.0) for reason in found]
    reasons.sort(key=lambda item: (-item[1], item[0]))
    listed: list[tuple[str, float | None]] = [*reasons[:REASONS_SHOWN]]
    if rest := reasons[REASONS_SHOWN:]:
        listed.append((things(len(rest), "other reason"), sum(many for _, many in rest)))
    return listed


def _adds_up(prepare: Mapping[str, Any]) -> bool:
    """Whether kept, rejected and duplicates are all examples, as far as they are known."""
    parts = [number(prepare, key) for key in ("kept", "rejected", "duplicates", "examples")]
    known = [part for part in parts if part is not None]
    return len(known) < 4 or sum(known[:3]) == known[3]


def _sample(row: Mapping[str, Any], groups: Sequence[str]) -> dict[str, Any]:
    """A sample with its group (from 1, 0: of none) and outcome, by which the page filters."""
    category = str(row["category"])
    group = groups.index(category) + 1 if category in groups else 0
    match = row["match"]
    outcome = ("yes" if match else "no") if isinstance(match, bool) else "none"
    return {**row, "group": group, "outcome": outcome}


def _most_tokens(params: Mapping[str, Any]) -> str:
    most = number(params, "exact_match_max_tokens")
    return "" if most is None else f" ({things(most, 'token')})"


def _param(value: object) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return brief(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
