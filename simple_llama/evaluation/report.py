"""The report of one fine-tuning run as a single page that opens anywhere (models/report.html).

The same input gives the same bytes: no time, machine, run id or speed stands in it.
Losses are in nats per supervised token, rates and accuracies are shares from 0 to 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simple_llama.evaluation.charts import (
    Mark,
    Series,
    finite_points,
    histogram,
    line_chart,
    share_bar,
    smooth,
)
from simple_llama.evaluation.page import (
    MISSING,
    count,
    decimal,
    definitions,
    esc,
    finite,
    folded,
    long_text,
    number,
    page,
    percent,
    section,
    table,
    things,
)
from simple_llama.evaluation.scorecard import categories, headline, loss_name, moved

SAMPLES_SHOWN = 12
"""Samples in the open; the rest is folded away."""

CATEGORIES_FILTERED = 50
"""Categories by which samples can be filtered."""

SAMPLES_KEPT = 100
"""Samples in the page at all."""

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
    samples: Sequence[Mapping[str, Any]]
    """category, prompt, reference, base, tuned, match and base_match (None: not scored)."""
    worst: Sequence[Mapping[str, Any]]
    """Examples with the highest loss: id, category, loss and base_loss, tokens, reference."""
    params: Mapping[str, Any]
    """The keys of params.yaml."""
    facts: Mapping[str, str]
    """What was trained on what: label to text."""


def render(report: ReportInput) -> str:
    """Write the page."""
    return page(
        "Fine-tuning report",
        summary(report),
        headline(report.evaluation, loss_name(report.params)),
        setting(report),
        curves(report),
        categories(report.evaluation),
        lengths(report),
        ledger(report),
        worst(report.worst),
        samples(report.samples),
        params(report.params),
    )


def summary(report: ReportInput) -> str:
    """Say in two sentences what was done and what came of it."""
    model = esc(report.params.get("model_path", "a base model"))
    trained_on = things(number(report.tokenize, "train_examples"), "conversation")
    epochs = number(report.train, "epochs")
    during = f" for {things(epochs, 'epoch')}" if epochs is not None else ""
    scores = report.evaluation
    loss = moved(number(scores, "base_val_loss"), number(scores, "val_loss"), decimal)
    match = moved(number(scores, "base_exact_match"), number(scores, "exact_match"), percent)
    return (
        "<header><h1>Fine-tuning report</h1>"
        f'<p class="lead">Fine-tuned {model} on {trained_on}{during}. '
        f"{loss_name(report.params)} {loss}, exact match {match}.</p></header>"
    )


def setting(report: ReportInput) -> str:
    """Say what was trained on what, and what was evaluated."""
    data = str(report.evaluation.get("data") or "")
    note = f'<p class="callout">{esc(data)}</p>' if data else ""
    return section("What was trained on what", definitions(list(report.facts.items())), note)


def curves(report: ReportInput) -> str:
    """Draw the losses, with learning rate and gradient norm beside them."""
    train, rows = report.train, report.train_curve
    best, steps = finite(number(train, "best_step")), number(train, "steps")
    best_loss = number(train, "best_val_loss")
    lead = f"{things(steps, 'optimizer step')} over {things(number(train, 'epochs'), 'epoch')}."
    if best is not None:
        lead += f" Validation loss was lowest, {decimal(best_loss)}, at step {count(best)}."
    loss = finite_points(rows, "step", "loss")
    val = finite_points(report.val_curve, "step", "loss")
    main = line_chart(
        title="Loss",
        series=[
            Series(label="training, each step", points=loss, style="raw"),
            Series(label="training, smoothed", points=smooth(loss), style="smooth"),
            Series(label="validation", points=val, style="val", dots=True),
        ],
        x_label="optimizer step",
        y_label="nats per token",
        mark=Mark(x=best, text=f"best: step {count(best)}") if best is not None else None,
        note=_left_out(len(rows) + len(report.val_curve) - len(loss) - len(val)),
    )
    aside = (
        _small_chart(rows, "Learning rate", "lr"),
        _small_chart(rows, "Gradient norm", "grad_norm"),
    )
    return section(
        "Training",
        f"<p>{esc(lead)}</p>",
        f'<div class="curves">{main}<div>{"".join(aside)}</div></div>',
    )


def _small_chart(rows: Sequence[Mapping[str, float]], title: str, key: str) -> str:
    points = finite_points(rows, "step", key)
    return line_chart(
        title=title,
        series=[Series(label=title, points=points, style="plain")],
        x_label="optimizer step",
        y_label="",
        size=(330, 160),
        note=_left_out(len(rows) - len(points)),
    )


def _left_out(missing: int) -> str:
    if not missing:
        return ""
    return f"{things(missing, 'value')} {'is' if missing == 1 else 'are'} absent or not finite."


def lengths(report: ReportInput) -> str:
    """Show how long the examples are."""
    stats = report.tokenize
    marks = [
        Mark(x=value, text=f"{label}: {count(value)}")
        for label, value in (
            ("half are shorter", finite(number(stats, "length_p50"))),
            ("95% are shorter", finite(number(stats, "length_p95"))),
        )
        if value is not None
    ]
    chart = histogram(
        title="Tokens per example",
        buckets=report.lengths,
        x_label="tokens",
        y_label="examples",
        marks=marks,
    )
    tokens, supervised = number(stats, "tokens"), number(stats, "supervised_tokens")
    share = supervised / tokens if tokens and supervised is not None else None
    pairs = [
        ("All tokens", count(tokens)),
        ("Trained to predict", f"{count(supervised)} ({percent(share)})"),
        ("Unknown tokens", percent(number(stats, "unknown_token_rate"))),
        ("Longest example", things(number(stats, "length_max"), "token")),
    ]
    return section("Length", f'<div class="two">{chart}{definitions(pairs)}</div>')


def ledger(report: ReportInput) -> str:
    """Account for every conversation, from the file to the training set."""
    prepare, tokens = report.prepare, report.tokenize
    examples = number(prepare, "examples")
    left_out, repeated = number(prepare, "left_out"), number(prepare, "repeated")
    untrained = number(tokens, "dropped_untrained")
    rows: list[tuple[str, float | None, str]] = [
        ("In the data", examples, "sum"),
        ("− rejected", number(prepare, "rejected"), ""),
        *((reason, many, "part") for reason, many in _reasons(prepare)),
        ("− duplicates", number(prepare, "duplicates"), ""),
        ("= kept", number(prepare, "kept"), "sum"),
        ("for training", number(prepare, "train"), "part"),
        ("for validation", number(prepare, "val"), "part"),
        *([("+ copies by mixture.yaml", repeated, "")] if repeated else []),
        ("− longer than max_seq_len", number(tokens, "dropped_too_long"), ""),
        *([("− train no reply", untrained, "")] if untrained else []),
        ("= trained on", number(tokens, "train_examples"), "sum"),
        ("= validated on", number(tokens, "val_examples"), "sum"),
    ]
    body = [
        f'<tr class="{style}"><th scope="row">{esc(label)}</th><td>{count(many)}</td>'
        f'<td class="bar">{share_bar(many, examples or 0)}</td></tr>'
        for label, many, style in rows
    ]
    head = (
        '<tr><th scope="col">Conversations</th><th scope="col">Number</th>'
        '<th scope="col">Share of the data</th></tr>'
    )
    alike = number(prepare, "val_prompts_like_train")
    note = (
        f"At most {percent(alike)} of the validation prompts differ from a training prompt only in "
        "digits or names: on these, a good score may partly be memory of the training data."
    )
    return section(
        "Where the data went",
        table(head, body, caption="From the data to the training set", style="ledger"),
        f'<p class="note">{count(left_out)} more are left out by mixture.yaml.</p>'
        if left_out
        else "",
        f'<p class="callout">{esc(note)}</p>' if alike is not None else "",
        _imbalance(prepare),
    )


def _reasons(prepare: Mapping[str, Any]) -> list[tuple[str, float | None]]:
    found: Mapping[str, Any] = prepare.get("rejected_by_reason") or {}
    reasons = [(str(reason), number(found, reason) or 0.0) for reason in found]
    reasons.sort(key=lambda item: (-item[1], item[0]))
    listed: list[tuple[str, float | None]] = [*reasons[:REASONS_SHOWN]]
    rest = reasons[REASONS_SHOWN:]
    if rest:
        other = things(len(rest), "other reason")
        listed.append((other, sum(many for _, many in rest)))
    return listed


def _imbalance(prepare: Mapping[str, Any]) -> str:
    parts = [number(prepare, key) for key in ("kept", "rejected", "duplicates", "examples")]
    known = [part for part in parts if part is not None]
    if len(known) < 4 or sum(known[:3]) == known[3]:
        return ""
    return '<p class="worse">Kept, rejected and duplicates do not add up to the data.</p>'


def worst(rows: Sequence[Mapping[str, Any]]) -> str:
    """List the examples that the tuned model finds hardest."""
    if not rows:
        return ""
    head = "".join(
        f'<th scope="col">{label}</th>'
        for label in ("Example", "Category", "Loss", "Base", "Tokens", "Reference")
    )
    body = [
        f'<tr><th scope="row">{esc(row.get("id") or MISSING)}</th>'
        f"<td>{esc(row.get('category') or MISSING)}</td>"
        f"<td>{decimal(number(row, 'loss'))}</td><td>{decimal(number(row, 'base_loss'))}</td>"
        f"<td>{count(number(row, 'tokens'))}</td>"
        f'<td class="reference">{long_text(row.get("reference") or "", limit=120)}</td></tr>'
        for row in rows
    ]
    return section(
        "Highest losses",
        f'<p class="note">The {things(len(rows), "evaluated example")} with the highest loss of '
        "the tuned model, in nats per token: where to look for wrong data first.</p>",
        table(f"<tr>{head}</tr>", body, caption="Highest losses by example", style="worst"),
    )


def samples(rows: Sequence[Mapping[str, Any]]) -> str:
    """Show prompts with the reference, the base model's and the tuned model's answer."""
    if not rows:
        return section("Samples", '<p class="soft">No samples were taken.</p>')
    groups = list(dict.fromkeys(str(row["category"]) for row in rows if row.get("category")))
    groups = groups[:CATEGORIES_FILTERED]
    shown = [_sample(i, row, groups) for i, row in enumerate(rows[:SAMPLES_KEPT], start=1)]
    rest = shown[SAMPLES_SHOWN:]
    cut = len(rows) - len(shown)
    return section(
        "Samples",
        _filters(groups),
        "\n".join(shown[:SAMPLES_SHOWN]),
        folded(things(len(rest), "further sample"), "\n".join(rest)) if rest else "",
        f'<p class="note">{things(cut, "more sample")} left out.</p>' if cut else "",
    )


def _filters(groups: Sequence[str]) -> str:
    """Controls that hide samples by style alone: the page has no script."""
    options = "".join(
        f'<option value="{i}">{esc(name)}</option>' for i, name in enumerate(groups, start=1)
    )
    rules = "".join(
        f'section:has(#category option[value="{i}"]:checked) .sample:not([data-category="{i}"])'
        "{display:none}"
        for i in range(1, len(groups) + 1)
    )
    chosen = (
        '<label>Category <select id="category" autocomplete="off"><option value="0">all</option>'
        f"{options}</select></label>"
    )
    return (
        f"<style>section:has(#differs:checked) .sample:not([data-match=no]){{display:none}}{rules}"
        '</style><div class="filters" role="group" aria-label="Filter the samples">'
        + (chosen if groups else "")
        + '<label><input type="checkbox" id="differs" autocomplete="off"> only where the tuned '
        "model differs from the reference</label></div>"
    )


def _sample(position: int, row: Mapping[str, Any], groups: Sequence[str]) -> str:
    category = row.get("category")
    group = groups.index(str(category)) + 1 if str(category) in groups else 0
    match = {True: "yes", False: "no"}.get(row.get("match"), "none")  # type: ignore[arg-type]
    title = f"{position} · {category}" if category else str(position)
    answers = (
        ("Reference", "reference", ""),
        ("Base model", "base", _badge(row.get("base_match"))),
        ("Tuned model", "tuned", _badge(row.get("match"))),
    )
    columns = "".join(
        f"<div><h4>{label}{badge}</h4>{long_text(row.get(key) or '')}</div>"
        for label, key, badge in answers
    )
    return (
        f'<article class="card sample" data-category="{group}" data-match="{match}">'
        f"<header><h3>{esc(title)}</h3></header>"
        f"<h4>Prompt</h4>{long_text(row.get('prompt') or '')}"
        f'<div class="answers">{columns}</div></article>'
    )


def _badge(match: object) -> str:
    if not isinstance(match, bool):
        return ""
    if match:
        return ' <span class="badge yes">✓ matches</span>'
    return ' <span class="badge no">✗ differs</span>'


def params(values: Mapping[str, Any]) -> str:
    """List every parameter as it stood."""
    rows = [
        f'<tr><th scope="row">{esc(key)}</th><td>{esc(_param(value))}</td></tr>'
        for key, value in values.items()
    ]
    head = '<tr><th scope="col">Parameter</th><th scope="col">Value</th></tr>'
    listed = table(head, rows, caption="Parameters", style="pairs")
    return section("Parameters", folded(things(len(rows), "parameter"), listed) if rows else "")


def _param(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
