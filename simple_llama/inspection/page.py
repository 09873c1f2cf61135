"""An inspection as a page of its own: one file, no network, no JavaScript."""

from simple_llama.evaluation.page import count, esc, page, section, table, things
from simple_llama.inspection.cells import Cell, visible
from simple_llama.inspection.selection import Inspection, Lost, Shown

CONTENT_SHOWN = 2000
HIGH_LOSS = 4.0
"""Nats, a chance of 1 in 50: what costs more is as dark."""
SHADE = 0.4
"""The darkest: what stands on it can still be read."""
STYLE = """
.tokens { display: flex; flex-wrap: wrap; gap: 8px 3px; align-items: flex-end; }
.tokens span { display: inline-flex; flex-direction: column; align-items: flex-start;
  font: 14px/1.35 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  border-bottom: 2px solid var(--track); padding: 0 2px; max-width: 100%;
  overflow-wrap: anywhere; }
.tokens small { font-size: 10px; color: var(--soft); font-weight: 400; }
.tokens + .note { margin-top: 10px; }
.tokens .target { background: var(--wash); border-color: var(--tuned); }
.tokens .control { color: var(--val); font-weight: 600; }
.tokens [style] { background: color-mix(in srgb, var(--val) var(--cost), transparent); }
.tokens [style], .tokens [style] small { color: inherit; }
.tokens .break { flex-basis: 100%; height: 0; border: 0; }
"""
LEGEND = """<div class="tokens"><span class="target">trained<small>position</small></span>
<span>context<small>position</small></span>
<span class="control">control<small>position</small></span></div>
<p class="note">· is a space, ↵ a line break, ∅ nothing that can be read. The pointer held over a
token shows its id.</p>"""


def render(inspection: Inspection) -> str:
    """The whole document."""
    of = inspection.of
    document = page(
        "Examples as they are trained",
        "<h1>Examples as they are trained</h1>",
        f'<p class="lead">{things(len(inspection.examples), "example")} of {count(of["train"])} '
        f"for training and {count(of['val'])} for validation, in the prompt format "
        f"{esc(visible(inspection.prompt_format))}.</p>",
        LEGEND,
        *(_example(example) for example in inspection.examples),
        section("What became of the data", _counts(inspection)) if inspection.counts else "",
        section("Not trained on", *map(_lost, inspection.lost)) if inspection.lost else "",
    )
    return document.replace("</style>", f"{STYLE}</style>", 1)


def _example(example: Shown) -> str:
    facts = [
        example.split,
        *([example.category] if example.category else []),
        things(example.tokens, "token"),
        f"{count(example.targets)} of them trained",
        *([] if example.loss is None else [f"loss {example.loss:.4f}"]),
    ]
    head = f"<b>{esc(visible(example.id))}</b>" + "".join(
        f"<span>{esc(visible(fact))}</span>" for fact in facts
    )
    following = [*example.cells[1:], None]
    tokens = "".join(_token(cell, after) for cell, after in zip(example.cells, following))
    return (
        f'<section class="card sample"><header>{head}</header>'
        f'<div class="tokens">{tokens}</div></section>'
    )


def _token(cell: Cell, after: Cell | None) -> str:
    kinds = [name for name in ("target", "control") if getattr(cell, name)]
    ids = ", ".join(map(str, cell.ids))
    ends_line = cell.text.endswith("↵") and not (after and after.text.startswith("↵"))
    cost = cell.loss if cell.target else None
    shade = "" if cost is None else f' style="--cost: {SHADE * min(cost / HIGH_LOSS, 1):.0%}"'
    below = f"{cell.position}" if cost is None else f"{cost:.2f}"
    said = "" if cost is None else f", loss {cost:.4f}"
    return (
        f'<span class="{" ".join(kinds)}"{shade} title="position {cell.position}, id {ids}{said}">'
        f"{esc(cell.text)}<small>{below}</small></span>"
        + ('<span class="break"></span>' if ends_line else "")
    )


def _counts(inspection: Inspection) -> str:
    rows = [
        f'<tr class="{"part" if what.startswith(" ") else ""}"><th scope="row">'
        f"{esc(visible(what.strip()))}</th><td>{count(many)}</td></tr>"
        for what, many in inspection.counts
    ]
    head = '<tr><th scope="col">Conversations</th><th scope="col">Number</th></tr>'
    return table(head, rows, caption="What became of the data", style="ledger")


def _lost(lost: Lost) -> str:
    shown = visible(lost.content[:CONTENT_SHOWN])
    content = f'<div class="text">{esc(shown)}</div>' if shown else ""
    return (
        f'<div class="sample"><header><b>{esc(visible(lost.id))}</b>'
        f"<span>{esc(visible(lost.why))}</span></header>{content}</div>"
    )
