"""An inspection as text: coloured on a terminal, with marks elsewhere.

0  <SOT> You ·are ·a <EOT>      position of the line's first token, then the tokens
       2 312   45  7     3      their ids
                   ^ ^^^^^      without colour: these are targets of the loss
                1.20  0.03      with a model: what the targets cost it, in nats
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from wcwidth import wcswidth

from simple_llama.inspection.cells import Cell, visible
from simple_llama.inspection.selection import Inspection, ShownExample, UntrainedRow

MARGIN = 8
CONTENT_SHOWN = 240
MARKS = "·↵⇥∅"
ASCII_MARKS = str.maketrans({"·": "~", "↵": r"\n", "⇥": r"\t", "∅": "(none)"})
"""Where the terminal has not all of MARKS."""
TARGET, CONTROL, CONTROL_TARGET, SOFT, STRONG = "7;36", "35", "7;35", "2", "1"
"""Parameters of ANSI's Select Graphic Rendition."""


def render(inspection: Inspection, *, width: int, colour: bool, encoding: str | None = None) -> str:
    """Write the inspection in lines of at most `width` columns, unless a token is wider.

    encoding: of the terminal, UTF-8 by default; other characters of a token are escaped.
    """
    spelt = partial(_spelt, encoding=encoding or "utf-8")
    lines = [_legend(inspection.prompt_format, colour)] if inspection.examples else []
    if any(example.loss is not None for example in inspection.examples):
        lines.append("below the ids: the loss of each token that is trained, in nats")
    for example in inspection.examples:
        cells = [replace(cell, text=spelt(cell.text)) for cell in example.cells]
        lines += ["", _header(example, colour), *_token_lines(cells, width, colour)]
    if inspection.counts:
        lines += ["", _styled("what became of the data", STRONG, colour)]
        lines += [f"  {visible(what):<32}{count:>10,}" for what, count in inspection.counts]
    lines += [line for lost in inspection.lost for line in _lost(lost, colour)]
    return "\n".join(map(spelt, lines))


def _spelt(text: str, encoding: str) -> str:
    """The text as a terminal of this encoding can show it, before its width is measured."""
    if MARKS.encode(encoding, "ignore").decode(encoding) != MARKS:
        text = text.translate(ASCII_MARKS)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _legend(prompt_format: str, colour: bool) -> str:
    trained, control = _styled("trained", TARGET, colour), _styled("control", CONTROL, colour)
    marks = f"{trained} and {control} tokens" if colour else "tokens, ^ under what is trained"
    return (
        f"{marks}, with their ids; · is a space, ↵ a line break, ⇥ a tab, ∅ nothing to read; "
        f"prompt format {visible(prompt_format)}"
    )


def _header(example: ShownExample, colour: bool) -> str:
    category = f", {visible(example.category)}" if example.category else ""
    mean = "" if example.loss is None else f", loss {example.loss:.4f} nats per token"
    return (
        f"{_styled(visible(example.id), STRONG, colour)}  {example.split}{category}, "
        f"{example.tokens} tokens, {example.targets} of them {example.use}{mean}"
    )


def _token_lines(cells: list[Cell], width: int, colour: bool) -> Iterator[str]:
    for row in _wrapped(cells, width - MARGIN):
        texts, ids, marks, costs = [], [], [], []
        for cell in row:
            room = _room(cell)
            gap = " " * (room - wcswidth(cell.text))
            texts.append(_styled(cell.text, _style(cell), colour) + gap)
            ids.append(_ids(cell).ljust(room))
            marks.append(("^" * wcswidth(cell.text) if cell.target else "").ljust(room))
            costs.append(_cost(cell).ljust(room))
        yield f"{row[0].position:>{MARGIN - 2}}  {' '.join(texts)}".rstrip()
        yield _styled(f"{'':{MARGIN}}{' '.join(ids)}".rstrip(), SOFT, colour)
        if not colour and any(cell.target for cell in row):
            yield f"{'':{MARGIN}}{' '.join(marks)}".rstrip()
        if any(cost.strip() for cost in costs):
            yield f"{'':{MARGIN}}{' '.join(costs)}".rstrip()


def _wrapped(cells: list[Cell], width: int) -> Iterator[list[Cell]]:
    row: list[Cell] = []
    used = 0
    for cell in cells:
        if row and used + _room(cell) > width:
            yield row
            row, used = [], 0
        row.append(cell)
        used += _room(cell) + 1
    if row:
        yield row


def _room(cell: Cell) -> int:
    return max(wcswidth(cell.text), len(_ids(cell)), len(_cost(cell)))


def _cost(cell: Cell) -> str:
    return "" if cell.loss is None or not cell.target else f"{cell.loss:.2f}"


def _ids(cell: Cell) -> str:
    return "+".join(map(str, cell.ids))


def _style(cell: Cell) -> str:
    if cell.control:
        return CONTROL_TARGET if cell.target else CONTROL
    return TARGET if cell.target else ""


def _styled(text: str, style: str, colour: bool) -> str:
    return f"\x1b[{style}m{text}\x1b[0m" if colour and style else text


def _lost(lost: UntrainedRow, colour: bool) -> Iterator[str]:
    yield f"{_styled(visible(lost.id), STRONG, colour)}  {visible(lost.why)}"
    if lost.content:
        shown = lost.content[:CONTENT_SHOWN]
        more = " ..." if len(lost.content) > CONTENT_SHOWN else ""
        yield _styled(f"{'':{MARGIN}}{visible(shown)}{more}", SOFT, colour)
