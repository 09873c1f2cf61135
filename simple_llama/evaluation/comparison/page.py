"""The page of several runs: can they be compared, side by side, loss curves, by category.

Also the short table that a terminal gets of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from simple_llama.evaluation.comparison.chart import loss_curves, swatch_of
from simple_llama.evaluation.comparison.runs import Run, differing_params, find_runs
from simple_llama.evaluation.comparison.scores import (
    EVALUATED_ON,
    MAIN,
    TRAINED_ON,
    Best,
    Format,
    comparable,
    differing_facts,
    loss,
    ranked,
)
from simple_llama.evaluation.report.scorecard import CATEGORIES_SHOWN, loss_name
from simple_llama.pages.numbers import MISSING, count, finite, number, passes, percent, things
from simple_llama.pages.template import fill
from simple_llama.pages.writing import check_page_path, write_page

Cell = tuple[str, bool]
"""A text, and whether it is marked as the best of its row."""
Row = tuple[str, list[Cell]]
"""A label, and a cell for each run."""


def render(runs: Sequence[Run], notes: Sequence[str] = ()) -> str:
    """Write the page. The notes say how ambiguous names were understood."""
    answer, style = verdict(runs)
    facts = EVALUATED_ON | TRAINED_ON
    labels = [label for some in (EVALUATED_ON, TRAINED_ON) for label in differing_facts(runs, some)]
    return fill(
        "evaluation/comparison/page.html.jinja",
        lead=_lead(runs),
        runs=[
            {"name": run.name, "warning": warning(run), "swatch": swatch_of(index)}
            for index, run in enumerate(runs)
        ],
        verdict=answer,
        verdict_style=style,
        unlike=[(label, _plain(facts[label](run) for run in runs)) for label in labels],
        notes=[*notes, *remarks(runs)],
        changed=len(differing_params(runs)),
        overview=_overview(runs),
        linear=loss_curves(runs, log=False),
        logarithmic=loss_curves(runs, log=True),
        categories=_categories(runs),
        CATEGORIES_SHOWN=CATEGORIES_SHOWN,
    )


def _lead(runs: Sequence[Run]) -> str:
    said = []
    for what, (_, key, form, best) in zip(("lowest loss", "best exact match"), ranked(runs, MAIN)):
        cells = _cells(runs, [number(run.scores, key) for run in runs], form, best)
        if winners := [run.name for run, (_, top) in zip(runs, cells) if top]:
            value = next(text for text, top in cells if top)
            said.append(f"{what} {value} ({', '.join(winners)})")
    return f"{things(len(runs), 'run')}{': ' if said else ''}{', '.join(said)}."


def warning(run: Run) -> str:
    """What has to be known of a run before its scores are read, in a few words."""
    if run.has_current_scores:
        return ""
    return "scores of other params" if run.scores else "not finished"


def remarks(runs: Sequence[Run]) -> list[str]:
    """Warn of scores that are of other params, and of runs with the same scores."""
    remarks = [f"{run.name}: {_outdated(run)}" for run in runs if run.scores and run.made_with]
    for index, run in enumerate(runs):
        twins = [one.name for one in runs[index + 1 :] if one.scores == run.scores != {}]
        if twins:
            remarks.append(f"{run.name}: exactly the same scores as {', '.join(twins)}")
    return remarks


def _outdated(run: Run) -> str:
    made = ", ".join(f"{key} {value}" for key, value in run.made_with.items())
    now = ", ".join(run.params[key] for key in run.made_with)
    return f"its scores are of {made}; params.yaml now says {now}, and dvc repro makes them anew"


def verdict(runs: Sequence[Run]) -> tuple[str, str]:
    """Say whether the scores may be compared; the sentence, and its CSS class."""
    done = [run for run in runs if run.has_current_scores]
    basis = comparable(done)
    if len(done) < 2:
        return "Not yet: fewer than two of these runs have scores of their own params.", "worse"
    if not basis:
        return "No: they were evaluated on different data, so no best value is marked.", "worse"
    if basis == {"replies"}:
        text = "Exact match yes, losses no: the same examples are different tokens in these runs."
        return text, "worse"
    if basis == {"tokens"}:
        return "Losses yes, exact match no: it was scored on different replies.", "worse"
    proof = "by its hash" if all(run.evaluated for run in done) else "as far as their counts tell"
    trained = (
        " The runs were trained on different data." if differing_facts(runs, TRAINED_ON) else ""
    )
    data = next((fact for run in done if (fact := EVALUATED_ON["Evaluated data"](run))), "")
    return f"Yes: evaluated on the same data, {proof}. {data}{trained}", ""


def _overview(runs: Sequence[Run]) -> list[Row]:
    """Where the runs came from, the params that differ, and what came out."""
    names = {loss_name(run.params) for run in runs}
    rows = [("Came from", _plain(run.origin for run in runs))]
    rows += [(key, _plain(run.params.get(key) for run in runs)) for key in differing_params(runs)]
    for label, key, form, best in ranked(runs):
        values = [number(run.scores, key) for run in runs]
        name = min(names) if key == "val_loss" and len(names) == 1 else label
        rows.append((name, _cells(runs, values, form, best)))
    for label, key, form in (
        ("Steps", "steps", count),
        ("Epochs", "epochs", passes),
        ("Best step", "best_step", count),
    ):
        rows.append((label, _cells(runs, [number(run.train, key) for run in runs], form)))
    return rows


def _plain(texts: Iterable[str | None]) -> list[Cell]:
    return [(text or MISSING, False) for text in texts]


def _cells(
    runs: Sequence[Run],
    values: Sequence[float | None],
    form: Format,
    best: Best | None = None,
) -> list[Cell]:
    """Mark what is the best as it is shown; nothing of fewer than two, or where all are, and none
    of other params."""
    ranks = [
        run.has_current_scores and finite(value) is not None for run, value in zip(runs, values)
    ]
    known = [value for value, ranked in zip(values, ranks) if ranked and value is not None]
    top = form(best(known)) if best and len(set(map(form, known))) > 1 else None
    return [(form(value), ranked and form(value) == top) for value, ranked in zip(values, ranks)]


def _categories(runs: Sequence[Run]) -> list[tuple[str, list[Row]]]:
    """A table of the losses and one of the exact matches, the most frequent category first."""
    found = [_by_category(run) for run in runs]
    sizes: dict[str, set[float]] = {}
    for name, row in (item for one in found for item in one.items()):
        sizes.setdefault(name, set()).add(finite(number(row, "examples")) or 0)
    ordered = sorted(sizes, key=lambda name: (-max(sizes[name]), name))
    tables = []
    for title, (_, key, form, best) in zip(("Loss", "Exact match"), ranked(runs, MAIN)):
        rows = []
        for name in ordered:
            values = [number(one.get(name, {}), key) for one in found]
            size = " to ".join(map(count, sorted({min(sizes[name]), max(sizes[name])})))
            rows.append((name, [(size, False), *_cells(runs, values, form, best)]))
        tables.append((title, rows))
    return tables if ordered else []


def _by_category(run: Run) -> dict[str, Mapping[str, Any]]:
    found = run.scores.get("by_category")
    rows = found.items() if isinstance(found, dict) else ()
    return {name: row for name, row in rows if isinstance(row, dict)}


def as_text(runs: Sequence[Run]) -> str:
    """A short table for a terminal: name, differing params, loss and exact match."""
    keys = differing_params(runs)
    rows = [("run", "params that differ", "val_loss", "exact_match", "")]
    for run in runs:
        changed = " ".join(f"{key}={run.params.get(key, MISSING)}" for key in keys)
        val_loss, match = number(run.scores, "val_loss"), number(run.scores, "exact_match")
        told = (loss(val_loss), percent(match)) if run.scores else ("", "")
        rows.append((_cut(run.name, 40), _cut(changed, 60) or "none", *told, warning(run)))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = (
        f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}  {e}".rstrip()
        for a, b, c, d, e in rows
    )
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def compare(names: Sequence[str], out: str) -> str:
    """Write the page to the path `out` and return what to print; raises what find_runs does."""
    check_page_path(out)
    runs, notes = find_runs(names)
    write_page(out, render(runs, notes))
    return "\n".join([as_text(runs), *notes, *remarks(runs), f"page: {out}"])
