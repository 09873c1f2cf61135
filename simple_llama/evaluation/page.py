"""The bare page: escaping, number formats, layout and style. Knows nothing of reports.

A page is one file that works offline, without JavaScript, in light, dark and print. Whatever comes
from outside passes through `esc`, which is the only door into the markup.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "–"
"""Stands for a value that is absent."""

# Control characters are not valid HTML and lone surrogates cannot be written as UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def esc(value: object) -> str:
    """Make any value safe as text or as a quoted attribute."""
    text = str(value).replace("\r\n", "\n").replace("\r", "\n")
    return html.escape(_UNPRINTABLE.sub("\ufffd", text), quote=True)


def number(values: Mapping[str, Any], key: str) -> float | None:
    """Return `values[key]` as a float (perhaps NaN or infinite), None if it is no number."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def finite(value: float | None) -> float | None:
    """Pass a finite number on; everything else becomes None."""
    return value if value is not None and math.isfinite(value) else None


def _unusual(value: float | None) -> str | None:
    if value is None:
        return MISSING
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return None


def decimal(value: float | None) -> str:
    """Format a measured value to about four digits: 0.812, 27.114, 1,204.5, 3.00e-05."""
    unusual = _unusual(value)
    if unusual is not None or value is None:
        return unusual or MISSING
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e6):
        return f"{value:.2e}"
    return f"{value:.3f}" if size < 100 else f"{value:,.1f}"


def count(value: float | None) -> str:
    """Format a number of things: 12,345."""
    unusual = _unusual(value)
    if unusual is not None or value is None:
        return unusual or MISSING
    return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.2e}"


def percent(value: float | None) -> str:
    """Format a share (0 to 1) as 61.3%, a tiny one as 0.02%."""
    unusual = _unusual(value)
    if unusual is not None or value is None:
        return unusual or MISSING
    if 0 < abs(value) < 1e-3:
        return f"{100 * value:.2g}%"
    return f"{100 * value:.1f}%" if abs(value) < 1e6 else f"{100 * value:.1e}%"


def things(value: float | None, singular: str, plural: str | None = None) -> str:
    """Count with the noun in its right form: 1 epoch, 3 epochs."""
    return f"{count(value)} {singular if value == 1 else plural or singular + 's'}"


def long_text(text: object, *, limit: int = 600, most: int = 10_000) -> str:
    """Show foreign text as written; fold it beyond `limit` characters, cut it beyond `most`."""
    whole = str(text)
    if not whole.strip():
        return '<p class="soft">(empty)</p>'
    shown = whole[:most]
    if len(whole) > most:
        shown += f"\n… {count(len(whole) - most)} more characters are not shown here."
    if len(whole) <= limit and whole.count("\n") < 16:
        return f'<div class="text" dir="auto">{esc(shown)}</div>'
    start = "\n".join(whole[: limit // 2].split("\n")[:8])
    return (
        '<details class="fold"><summary>'
        f'<span class="text preview" dir="auto">{esc(start)} …</span> '
        f'<span class="more">whole text, {count(len(whole))} characters</span></summary>'
        f'<div class="text" dir="auto">{esc(shown)}</div></details>'
    )


def folded(label: str, body: str) -> str:
    """Put finished markup behind a line that opens it."""
    return f'<details class="fold"><summary class="more">{esc(label)}</summary>{body}</details>'


def table(head: str, rows: Sequence[str], *, caption: str, style: str = "") -> str:
    """Lay finished header and body rows out as a table that scrolls sideways when narrow."""
    return (
        f'<div class="scroll" role="region" aria-label="{esc(caption)}" tabindex="0">'
        f'<table class="{esc(style)}"><caption>{esc(caption)}</caption>'
        f"<thead>{head}</thead>\n<tbody>" + "\n".join(rows) + "</tbody></table></div>"
    )


def definitions(pairs: Sequence[tuple[str, str]]) -> str:
    """Lay label and text pairs (plain text) out as a list."""
    items = (
        f'<div><dt>{esc(label)}</dt><dd dir="auto">{esc(text)}</dd></div>' for label, text in pairs
    )
    return '<dl class="facts">' + "\n".join(items) + "</dl>" if pairs else ""


def section(title: str, *parts: str) -> str:
    """Put finished parts under a heading."""
    body = "\n".join(part for part in parts if part)
    return f"<section><h2>{esc(title)}</h2>\n{body}\n</section>"


def page(title: str, *parts: str) -> str:
    """Wrap finished parts into a whole document."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{esc(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


# The blue, vermilion and grey stay apart for every kind of colour vision, and in greyscale.
STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fafaf8; --card: #ffffff; --ink: #1c2229; --soft: #5a646f; --rule: #e2e4e6;
  --tuned: #0a66ad; --base: #8c959f; --val: #c4500a; --track: #eef0f1; --wash: #eaf3fa;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171a; --card: #1b1f23; --ink: #e4e8eb; --soft: #a2acb6; --rule: #31373d;
    --tuned: #62b4f0; --base: #818b95; --val: #f2a154; --track: #272c31; --wash: #1b2c3a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  -webkit-text-size-adjust: 100%; print-color-adjust: exact; -webkit-print-color-adjust: exact;
}
main { max-width: 1080px; margin: 0 auto; padding: 48px 24px 72px; }
h1 { font-size: 15px; font-weight: 600; color: var(--soft); margin: 0 0 10px; }
h2 { font-size: 21px; font-weight: 600; line-height: 1.3; margin: 0 0 14px; }
h3 { font-size: 15px; font-weight: 600; margin: 0; }
p { margin: 0 0 14px; max-width: 72ch; }
section { margin-top: 52px; }
.lead { font-size: 25px; line-height: 1.4; max-width: 44ch; margin-bottom: 30px;
  text-wrap: pretty; overflow-wrap: anywhere; }
.soft, .note { color: var(--soft); }
.note { font-size: 14px; }
.better { color: var(--tuned); font-weight: 600; }
.worse { color: var(--val); font-weight: 600; }
.callout { border-left: 3px solid var(--tuned); padding: 2px 0 2px 14px; }
.grid { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 18px 20px; min-width: 0; break-inside: avoid; }
.card .label { font-size: 14px; font-weight: 600; }
.card .big { font-size: 38px; font-weight: 600; line-height: 1.2; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; margin: 4px 0 2px; }
.card p { margin: 0; }
.card svg.bars { margin: 10px 0 6px; }
.facts { margin: 0; display: grid; column-gap: 40px;
  grid-template-columns: repeat(auto-fit, minmax(min(380px, 100%), 1fr)); }
.facts div { display: grid; grid-template-columns: 10em 1fr; gap: 12px; padding: 8px 0;
  border-top: 1px solid var(--rule); }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.facts + .callout, .scroll + .callout { margin-top: 20px; }
table.ledger { max-width: 760px; }
.curves { display: grid; gap: 16px; grid-template-columns: minmax(0, 2fr) minmax(0, 1fr); }
.curves > div { display: grid; gap: 16px; }
.two { display: grid; gap: 16px 32px; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr);
  align-items: start; }
.two .facts { grid-template-columns: 1fr; }
figure { margin: 0; }
figcaption { display: flex; flex-wrap: wrap; gap: 4px 18px; align-items: baseline;
  margin-bottom: 8px; }
.legend { display: inline-flex; align-items: center; gap: 6px; font-size: 14px;
  color: var(--soft); }
.legend svg { width: 26px; height: 12px; }
svg { display: block; width: 100%; height: auto; }
svg.bars { height: 14px; }
svg text { font-size: 12px; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg .grid-line { stroke: var(--rule); stroke-width: 1; }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .raw { stroke: var(--tuned); stroke-width: 1; opacity: 0.38; }
svg .smooth, svg .plain { stroke: var(--tuned); stroke-width: 2.25; }
svg .plain { stroke-width: 1.5; }
svg .val { stroke: var(--val); }
svg .dot { fill: var(--card); stroke-width: 2; }
svg .mark { stroke: var(--ink); stroke-width: 1; stroke-dasharray: 4 3; }
svg .mark-text { fill: var(--ink); font-weight: 600; stroke: var(--card); stroke-width: 4;
  stroke-linejoin: round; paint-order: stroke; }
svg .fill-tuned { fill: var(--tuned); }
svg .fill-base { fill: var(--base); }
svg .fill-track { fill: var(--track); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 15px;
  font-variant-numeric: tabular-nums; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); }
th, td { padding: 7px 10px; border-top: 1px solid var(--rule); text-align: right;
  font-weight: 400; white-space: nowrap; }
thead td { border-top: 0; }
thead th { color: var(--soft); font-size: 14px; border-top: 0; vertical-align: bottom; }
tr > :first-child { text-align: left; padding-left: 0; white-space: normal;
  overflow-wrap: anywhere; min-width: 9em; }
tr > td:first-child { min-width: 0; }
tr > :last-child { padding-right: 0; }
thead th.group { text-align: left; color: var(--ink); font-weight: 600; }
td.bar { width: 20%; min-width: 110px; }
tr.sum > * { font-weight: 600; }
tr.part > :first-child { padding-left: 24px; color: var(--soft); }
table.pairs { width: auto; min-width: min(100%, 420px); font-size: 14px; }
table.pairs td { text-align: left; white-space: pre-wrap; overflow-wrap: anywhere;
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
table.worst td, table.worst tbody th { vertical-align: top; }
table.worst td.reference { text-align: left; white-space: normal; min-width: 16em; }
.filters { display: flex; flex-wrap: wrap; gap: 8px 24px; font-size: 15px; }
.filters select, .filters input { font: inherit; accent-color: var(--tuned); }
.sample { margin-top: 16px; }
.sample header { display: flex; flex-wrap: wrap; gap: 4px 12px; align-items: baseline;
  margin-bottom: 10px; font-size: 14px; color: var(--soft); overflow-wrap: anywhere; }
.answers { display: grid; gap: 14px 24px; margin-top: 14px; padding-top: 14px;
  border-top: 1px solid var(--rule);
  grid-template-columns: repeat(auto-fit, minmax(min(240px, 100%), 1fr)); }
.answers > div { min-width: 0; }
.sample h4 { margin: 0 0 4px; font-size: 14px; font-weight: 600; color: var(--soft); }
.badge { font-size: 13px; font-weight: 600; white-space: nowrap; margin-left: 6px; }
.badge.yes { color: var(--tuned); background: var(--wash); padding: 1px 8px; border-radius: 9px; }
.badge.no { color: var(--val); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 15px; }
.answers .text { font-size: 14px; line-height: 1.5; }
details > summary { cursor: pointer; }
summary:focus-visible, .scroll:focus-visible { outline: 2px solid var(--tuned);
  outline-offset: 3px; }
.more { color: var(--tuned); font-size: 14px; }
details[open] > summary > .preview { display: none; }
details.fold { margin-top: 6px; }
@media (max-width: 760px) {
  main { padding: 28px 16px 48px; }
  .lead { font-size: 21px; }
  .curves, .two { grid-template-columns: minmax(0, 1fr); }
  .facts div { grid-template-columns: 8em 1fr; }
  .grid { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; }
  .card { padding: 14px; }
  .card .big { font-size: 30px; }
}
@media (max-width: 520px) { svg.wide text { font-size: 19px; } }
@media print {
  :root { --ground: #fff; --card: #fff; --ink: #000; --soft: #444; --rule: #ccc;
    --tuned: #0a66ad; --base: #8c959f; --val: #c4500a; --track: #eee; --wash: #fff; }
  main { max-width: none; padding: 0; }
  section { margin-top: 28px; }
  h2 { break-after: avoid; }
  tr, figure { break-inside: avoid; }
  .scroll { overflow: visible; }
  details::details-content { content-visibility: visible; display: block; }
}
"""
