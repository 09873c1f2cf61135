"""Several runs as a Markdown table, for a comment on a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from simple_llama.evaluation.comparison.page import remarks, verdict, warning
from simple_llama.evaluation.comparison.runs import Run, differing_params, find_runs
from simple_llama.evaluation.comparison.scores import ranked
from simple_llama.pages.numbers import MISSING, count, finite, number


def as_markdown(runs: Sequence[Run], notes: Sequence[str] = ()) -> str:
    """Write the params that differ and the scores, each run compared with the first.

    A change is marked better or worse where the scores may be compared.
    """
    warnings = [f" ({said})" if (said := warning(run)) else "" for run in runs]
    names = [f"{run.name}{said}" for run, said in zip(runs, warnings)]
    lines = [_line(["", *names]), "|---" + "|---:" * len(runs) + "|"]
    changed = [
        [key, *(run.params.get(key, MISSING) for run in runs)] for key in differing_params(runs)
    ]
    lines += [_line(row) for row in (*changed, *_scores(runs))]
    below = (verdict(runs)[0], *notes, *remarks(runs))
    return "\n".join([*lines, "", *(f"{_plain(one)}  " for one in below)])


def _scores(runs: Sequence[Run]) -> Iterator[list[str]]:
    for label, key, form, best in ranked(runs):
        values = [number(run.scores, key) for run in runs]
        first, row = finite(values[0]), [label, form(values[0])]
        for run, value in zip(runs[1:], map(finite, values[1:])):
            cell = form(value)
            ranked_too = runs[0].has_current_scores and run.has_current_scores
            if (
                best is not None
                and ranked_too
                and None not in (first, value)
                and form(first) != cell
            ):
                assert first is not None and value is not None
                better = best([first, value]) == value
                cell += f" ({'better' if better else 'worse'} by {form(abs(value - first))})"
            row.append(cell)
        yield row
    for label, key in (("Steps", "steps"), ("Best step", "best_step")):
        yield [label, *(count(number(run.train, key)) for run in runs)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_plain, cells)) + " |"


def _plain(text: str) -> str:
    """Escape a text: nothing in it is Markdown or HTML, or begins another line."""
    spaced = "".join(c if c.isprintable() else " " for c in text)
    return re.sub(r"([\\`*_{}\[\]<>#|~@&])", r"\\\1", spaced)


def compare(names: Sequence[str]) -> str:
    """The table of the runs that find_runs finds. Raises what find_runs raises."""
    return as_markdown(*find_runs(names))
