"""Making chat templates readable by programs other than `transformers`.

Only `transformers` knows the block {% generation %}, which marks what is trained. Jinja, minijinja
and llama.cpp refuse a template that has one; what stands inside is as valid for them.
"""

import re
from pathlib import Path
from typing import Any

from simple_llama.files import read_json, write_json

TAG_CONTENT = r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|(?!%\}|\}\})[^'"])*"""
"""The inside of a Jinja tag: strings, in which anything may stand, and all else up to its end."""
TAG = re.compile(r"\{\#.*?\#\}|\{%" + TAG_CONTENT + r"%\}|\{\{" + TAG_CONTENT + r"\}\}", re.DOTALL)
GENERATION_TAG = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


def without_generation(template: str) -> str:
    """Replace the block by an `if` that is always true, which trims the same white space around it.

    So any Jinja renders the same text.
    """
    return TAG.sub(_condition, template)


def _condition(piece: re.Match[str]) -> str:
    tag = GENERATION_TAG.fullmatch(piece[0])
    return f"{tag[1]}{'endif' if tag[2] else 'if true'}{tag[3]}" if tag else piece[0]


def make_portable(folder: Path) -> None:
    """Rewrite the chat templates in a tokenizer's folder: chat_template.jinja, and the one or more
    in tokenizer_config.json."""
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
