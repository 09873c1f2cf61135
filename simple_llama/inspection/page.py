"""An inspection as a page of its own: one file, no network, no JavaScript."""

from collections.abc import Sequence
from typing import Any

from simple_llama.inspection.cells import Cell, visible
from simple_llama.inspection.selection import Inspection, ShownExample
from simple_llama.pages.numbers import count, things
from simple_llama.pages.template import fill

CONTENT_SHOWN = 2000
"""Characters of a rejected row."""
HIGH_LOSS = 4.0
"""Nats, a chance of 1 in 50. Tokens that cost more are shaded no darker."""
SHADE = 40
"""Percent of the darkest shade: the text on it can still be read."""


def render(inspection: Inspection) -> str:
    """Write the page."""
    return fill(
        "inspection/page.html.jinja",
        of=inspection.of,
        prompt_format=visible(inspection.prompt_format),
        losses=any(example.loss is not None for example in inspection.examples),
        examples=[
            {
                "id": visible(example.id),
                "facts": map(visible, _facts(example)),
                "cells": _cells(example.cells),
            }
            for example in inspection.examples
        ],
        counts=[
            (visible(what.strip()), many, "part" if what.startswith(" ") else "")
            for what, many in inspection.counts
        ],
        lost=[
            (visible(lost.id), visible(lost.why), visible(lost.content[:CONTENT_SHOWN]))
            for lost in inspection.lost
        ],
    )


def _facts(example: ShownExample) -> list[str]:
    return [
        example.split,
        *([example.category] if example.category else []),
        things(example.tokens, "token"),
        f"{count(example.targets)} of them {example.use}",
        *([] if example.loss is None else [f"loss {example.loss:.4f} nats per token"]),
    ]


def _cells(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Each token with its classes, its shade in percent, and whether a line ends after it."""
    return [
        {
            "position": cell.position,
            "ids": ", ".join(map(str, cell.ids)),
            "text": cell.text,
            "kinds": " ".join(name for name in ("target", "control") if getattr(cell, name)),
            "loss": cell.loss if cell.target else None,
            "shade": round(SHADE * min(cell.loss / HIGH_LOSS, 1))
            if cell.target and cell.loss is not None
            else None,
            "ends_line": cell.text.endswith("↵") and not after.startswith("↵"),
        }
        for cell, after in zip(cells, [*(cell.text for cell in cells[1:]), ""])
    ]
