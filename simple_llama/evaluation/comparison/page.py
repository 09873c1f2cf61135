"""The page of several runs: can they be compared, side by side, loss curves, by category.

Also the short table that a terminal gets of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from simple_llama.evaluation.comparison.chart import LINES_STYLE, PLOT_STYLE, curves, cut, swatch
from simple_llama.evaluation.comparison.runs import Run, differing, find_runs
from simple_llama.evaluation.comparison.scores import (
    EVALUATED,
    MAIN,
    TRAINED,
    Best,
    Form,
    alike,
    loss,
    ranked,
    unlike,
)
from simple_llama.evaluation.page import (
    MISSING,
    count,
    esc,
    finite,
    folded,
    number,
    page,
    percent,
    section,
    table,
    things,
)
from simple_llama.evaluation.scorecard import CATEGORIES_SHOWN, loss_name
from simple_llama.files import atomic_write

STYLE = (
    LINES_STYLE
    + """\
.callout.worse { border-color: var(--val); }
.scroll + .note { margin-top: 14px; }
"""
    + PLOT_STYLE
    + """\
section > h3 { margin: 26px 0 6px; }
th.run, table.runs td { white-space: normal; overflow-wrap: anywhere; min-width: 8.5em;
  max-width: 22em; }
th.run b { color: var(--ink); }
th.run .badge { margin: 0; }
th:first-child { position: sticky; left: 0; background: var(--ground); }
@media (max-width: 520px) { .plot svg.wide text { font-size: 13px; }
  tr > :first-child { min-width: 6.5em; } }
"""
)


def render(runs: Sequence[Run], notes: Sequence[str] = ()) -> str:
    """Write the page. The notes say how ambiguous names were understood."""
    text = page(
        "Comparison of runs",
        _lead(runs),
        _comparable(runs, notes),
        _overview(runs),
        curves(runs),
        _categories(runs),
    )
    # page() knows only the report's style, and a change there would make every report stale
    return text.replace("</style>", f"{STYLE}</style>", 1)


def _lead(runs: Sequence[Run]) -> str:
    said = []
    for what, (_, key, form, best) in zip(("lowest loss", "best exact match"), ranked(runs, MAIN)):
        values = [number(run.scores, key) for run in runs]
        stars = _best(values, form, best)
        if any(stars):
            names = ", ".join(run.name for run, star in zip(runs, stars) if star)
            said.append(f"{what} {form(values[stars.index(True)])} ({names})")
    text = f"{things(len(runs), 'run')}{': ' if said else ''}{', '.join(said)}."
    return f'<header><h1>Comparison of runs</h1><p class="lead">{esc(text)}</p></header>'


def _comparable(runs: Sequence[Run], notes: Sequence[str]) -> str:
    """Say whether the scores may be compared, and list what differs in the data."""
    labels = [label for facts in (EVALUATED, TRAINED) for label in unlike(runs, facts)]
    facts = EVALUATED | TRAINED
    rows = [_row(label, [esc(facts[label](run) or MISSING) for run in runs]) for label in labels]
    answer, style = verdict(runs)
    return section(
        "Can they be compared?",
        f'<p class="callout {style}">{esc(answer)}</p>',
        table(_head("Data", runs), rows, caption="What differs in the data", style="runs")
        if rows
        else "",
        *(f'<p class="note">{esc(note)}.</p>' for note in (*notes, *remarks(runs))),
    )


def remarks(runs: Sequence[Run]) -> list[str]:
    """What else a reader of the scores should know."""
    remarks = [
        f"{run.name}: params.yaml has changed since these results were made "
        f"({', '.join(run.stale)}); dvc repro makes them anew"
        for run in runs
        if run.stale and run.scores
    ]
    for index, run in enumerate(runs):
        twins = [one.name for one in runs[index + 1 :] if one.scores == run.scores != {}]
        if twins:
            remarks.append(f"{run.name}: exactly the same scores as {', '.join(twins)}")
    return remarks


def verdict(runs: Sequence[Run]) -> tuple[str, str]:
    """Whether the scores may be compared, and the style of that sentence."""
    done = [run for run in runs if run.scores]
    basis = alike(done)
    if len(done) < 2:
        return "Not yet: fewer than two of these runs are finished.", "worse"
    if not basis:
        return "No: they were evaluated on different data, so no best value is marked.", "worse"
    if basis == {"replies"}:
        text = "Exact match yes, losses no: the same examples are different tokens in these runs."
        return text, "worse"
    if basis == {"tokens"}:
        return "Losses yes, exact match no: it was scored on different replies.", "worse"
    proof = "by its hash" if all(run.evaluated for run in done) else "as far as their counts tell"
    trained = " They were trained on different data." if unlike(runs, TRAINED) else ""
    data = next((fact for run in done if (fact := EVALUATED["Evaluated data"](run))), "")
    return f"Yes: evaluated on the same data, {proof}.{trained} {data}", ""


def _overview(runs: Sequence[Run]) -> str:
    changed = differing(runs)
    names = {loss_name(run.params) for run in runs}
    rows = [_row("Came from", [esc(run.origin) for run in runs])]
    rows += [_row(key, [esc(run.params.get(key, MISSING)) for run in runs]) for key in changed]
    for label, key, form, best in ranked(runs):
        values = [number(run.scores, key) for run in runs]
        name = min(names) if key == "val_loss" and len(names) == 1 else label
        rows.append(_row(name, _cells(values, form, best)))
    for label, key in (("Steps", "steps"), ("Best step", "best_step")):
        rows.append(_row(label, _cells([number(run.train, key) for run in runs], count)))
    params = f"{things(len(changed), 'parameter')} of params.yaml" if changed else "No parameter"
    return section(
        "Side by side",
        f'<p class="note">{esc(params)} {"differ" if len(changed) > 1 else "differs"}. '
        "★ marks the best value of a row. Losses are in nats per token.</p>",
        table(_head("Run", runs, tell=True), rows, caption="Runs side by side", style="runs"),
    )


def _head(first: str, runs: Sequence[Run], *more: str, tell: bool = False) -> str:
    cells = "".join(f'<th scope="col">{esc(label)}</th>' for label in (first, *more))
    for index, run in enumerate(runs):
        state = '<br><span class="badge no">not finished</span>' if not run.scores and tell else ""
        cells += f'<th scope="col" class="run">{swatch(index)}<b>{esc(run.name)}</b>{state}</th>'
    return f"<tr>{cells}</tr>"


def _row(label: str, cells: Iterable[str]) -> str:
    listed = "".join(f'<td dir="auto">{cell}</td>' for cell in cells)
    return f'<tr><th scope="row">{esc(label)}</th>{listed}</tr>'


def _best(values: Sequence[float | None], form: Form, best: Best | None) -> list[bool]:
    """Which values are the best as they are shown; none of fewer than two, or where all are."""
    known = [value for value in map(finite, values) if value is not None]
    shown = {form(value) for value in known}
    if best is None or len(shown) < 2:
        return [False] * len(values)
    top = form(best(known))
    return [finite(value) is not None and form(value) == top for value in values]


def _cells(values: Sequence[float | None], form: Form, best: Best | None = None) -> list[str]:
    star = '<span role="img" aria-label="best">★</span>'
    return [
        f'<span class="better">{star} {form(value)}</span>' if top else form(value)
        for value, top in zip(values, _best(values, form, best))
    ]


def _categories(runs: Sequence[Run]) -> str:
    found = [_by_category(run) for run in runs]
    sizes: dict[str, set[float]] = {}
    for name, row in (item for one in found for item in one.items()):
        sizes.setdefault(name, set()).add(finite(number(row, "examples")) or 0)
    ordered = sorted(sizes, key=lambda name: (-max(sizes[name]), name))
    if not ordered:
        return section("By category", '<p class="soft">No categories were evaluated.</p>')
    head, parts = _head("Category", runs, "Examples"), []
    for title, (_, key, form, best) in zip(("Loss", "Exact match"), ranked(runs, MAIN)):
        rows = []
        for name in ordered:
            values = [number(one.get(name, {}), key) for one in found]
            size = " to ".join(map(count, sorted({min(sizes[name]), max(sizes[name])})))
            rows.append(_row(name, [size, *_cells(values, form, best)]))
        parts.append(f"<h3>{title}</h3>{_shortened(head, rows, f'{title} by category')}")
    return section("By category", *parts)


def _shortened(head: str, rows: Sequence[str], caption: str) -> str:
    shown = table(head, rows[:CATEGORIES_SHOWN], caption=caption)
    rest = rows[CATEGORIES_SHOWN:]
    label = things(len(rest), "further category", "further categories")
    return shown + (
        folded(label, table(head, rest, caption=f"{caption}, the rest")) if rest else ""
    )


def _by_category(run: Run) -> dict[str, Mapping[str, Any]]:
    found = run.scores.get("by_category")
    rows = found.items() if isinstance(found, dict) else ()
    return {name: row for name, row in rows if isinstance(row, dict)}


def as_text(runs: Sequence[Run]) -> str:
    """A short table for a terminal: name, differing params, loss and exact match."""
    keys = differing(runs)
    rows = [("run", "params that differ", "val_loss", "exact_match")]
    for run in runs:
        changed = " ".join(f"{key}={run.params.get(key, MISSING)}" for key in keys)
        val_loss, match = number(run.scores, "val_loss"), number(run.scores, "exact_match")
        told = (loss(val_loss), percent(match)) if run.scores else ("not finished", "")
        rows.append((cut(run.name, 40), cut(changed, 60) or "none", *told))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = (
        f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}".rstrip()
        for a, b, c, d in rows
    )
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


def compare(names: Sequence[str], out: str) -> str:
    """Write the page to the path `out` and return what to print; raises what find_runs does."""
    runs, notes = find_runs(names)
    content = render(runs, notes).encode()
    with atomic_write(out) as file:
        file.write(content)
    return "\n".join([as_text(runs), *notes, f"page: {out}"])
