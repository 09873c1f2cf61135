"""Chat templates for programs other than `transformers`, whose {% generation %} block is its own.

Jinja, minijinja and llama.cpp refuse a template that has one. What is in it counts for all.
"""

import re
from pathlib import Path
from typing import Any

from simple_llama.files import read_json, write_json

INSIDE = r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|(?!%\}|\}\})[^'"])*"""
"""Of a tag: strings, in which anything may stand, and the rest up to its end."""
PIECE = re.compile(r"\{\#.*?\#\}|\{%" + INSIDE + r"%\}|\{\{" + INSIDE + r"\}\}", re.DOTALL)
BLOCK = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


def without_generation(template: str) -> str:
    """The same text from any Jinja: the block becomes an `if` that is always true, so that the
    white space around it is trimmed as before."""
    return PIECE.sub(_condition, template)


def _condition(piece: re.Match[str]) -> str:
    tag = BLOCK.fullmatch(piece[0])
    return f"{tag[1]}{'endif' if tag[2] else 'if true'}{tag[3]}" if tag else piece[0]


def make_portable(folder: Path) -> None:
    """Rewrite the chat templates of a tokenizer's folder, in a file of their own or in its
    tokenizer_config.json, one or several by name."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        template = own.read_bytes().decode(errors="surrogateescape")
        own.write_bytes(without_generation(template).encode(errors="surrogateescape"))
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    found = config.get("chat_template")
    if found is not None:
        write_json(path, {**config, "chat_template": _rewritten(found)})


def _rewritten(found: Any) -> Any:
    match found:
        case str():
            return without_generation(found)
        case [*several]:
            return [_rewritten(one) for one in several]
        case {"template": template}:
            return {**found, "template": _rewritten(template)}
    return found
