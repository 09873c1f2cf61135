"""Rows of conversations, and what prepare makes of them."""

import json
from pathlib import Path
from typing import Any

from simple_llama.data.examples import Example, to_example
from simple_llama.data.formats import ConversationReader
from simple_llama.data.prompt_formats import Message
from simple_llama.data.rows import Row
from simple_llama.params.prepare import PrepareParams

SYSTEM = "You are a helpful assistant."


def params(path: Path, **changes: Any) -> PrepareParams:
    values: dict[str, Any] = {
        "ft_json_path": str(path),
        "data_format": "auto",
        "train_split": 0.8,
        "max_rejected": 1.0,
        "system_prompt": SYSTEM,
        "seed": 89,
    }
    return PrepareParams(**{**values, **changes})


def row(user: str, reply: str = "yes", **more: Any) -> dict[str, Any]:
    return {"Template": ["CUSTOM"], "User": [user], "Assistant": [reply], **more}


def rows(number: int) -> list[dict[str, Any]]:
    return [row(f"question {index}") for index in range(number)]


def write(folder: Path, value: Any) -> Path:
    path = folder / "raw.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def turns(*texts: str, system: str | None = None) -> list[Message]:
    """user, assistant, user, ... with a system prompt before them if given."""
    roles = ("user", "assistant")
    messages: list[Message] = [
        {"role": roles[i % 2], "content": text} for i, text in enumerate(texts)
    ]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def example(row: dict[str, Any], system: str = "") -> Example:
    return to_example(Row("a[0]", "a", row, json.dumps(row)), ConversationReader(), system)
