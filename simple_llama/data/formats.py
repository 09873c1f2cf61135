"""Rows → conversations: one function a format.

Here only the shape is looked at; what the texts must be stands in examples.py.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simple_llama.data.rows import RepeatedKey, RowError

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}"""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns as their format gives them; the texts are not looked at yet."""

    system: str | None
    turns: list[Message]
    """user, assistant, user, ... and at last an assistant's."""
    category: str | None


def to_conversation(value: Any) -> Conversation:
    """A raw row of any known format. Raises RowError."""
    if isinstance(value, RowError):
        raise value
    _check_object(value, "the row")
    for key, convert in FORMATS.items():
        if key in value:
            return convert(value)
    keys = ", ".join(_shown(key) for key in list(value)[:6])
    raise RowError(
        "unknown format", f"keys {keys or 'none'}, wanted 'User' and 'Assistant', or 'messages'"
    )


def _from_simple_llama(row: dict[str, Any]) -> Conversation:
    """{"Template": [system prompt or CUSTOM], "User": [...], "Assistant": [...], "Category"?}"""
    users, replies = _texts(row, "User"), _texts(row, "Assistant")
    if len(users) != len(replies):
        detail = f"'User' has {_count(users)}, 'Assistant' {len(replies)}"
        raise RowError("turns do not pair up", detail)
    if not users:
        raise RowError("no turns", "'User' and 'Assistant' are empty")
    systems = [] if row.get("Template") is None else _texts(row, "Template")
    if len(systems) > 1:
        raise RowError("wrong shape", f"'Template' has {len(systems)} system prompts, wanted 1")
    turns = []
    for user, reply in zip(users, replies):
        turns.append({"role": "user", "content": user})
        turns.append({"role": "assistant", "content": reply})
    return Conversation(
        system=None if systems in ([], ["CUSTOM"]) else systems[0],
        turns=turns,
        category=_optional_text(row, "Category"),
    )


def _from_messages(row: dict[str, Any]) -> Conversation:
    """{"messages": [{"role": "system" | "user" | "assistant", "content": text}, ...]}"""
    messages = row["messages"]
    if not isinstance(messages, list):
        raise RowError("wrong type", f"'messages' is {_type(messages)}, wanted a list")
    turns: list[Message] = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        _check_object(message, where)
        role, content = message.get("role"), message.get("content")
        if not isinstance(content, str):
            raise RowError("wrong type", f"{where}: 'content' is {_type(content)}, wanted text")
        if not (index == 0 and role == "system"):
            wanted = "assistant" if len(turns) % 2 else "user"
            if role != wanted:
                detail = f"{where}: role {_shown(role)}, wanted {wanted!r}"
                raise RowError("wrong order of roles", detail)
            turns.append({"role": wanted, "content": content})
    if not turns:
        raise RowError("no turns", "'messages' holds no user turn")
    if len(turns) % 2:
        raise RowError("turns do not pair up", "the last message is not the assistant's")
    return Conversation(
        system=messages[0]["content"] if messages[0]["role"] == "system" else None,
        turns=turns,
        category=_optional_text(row, "category" if "category" in row else "Category"),
    )


FORMATS: dict[str, Callable[[dict[str, Any]], Conversation]] = {
    "messages": _from_messages,
    "User": _from_simple_llama,
    "Assistant": _from_simple_llama,
}
"""A key that only rows of one format have → what reads such rows; the first that fits."""


def _texts(row: dict[str, Any], key: str) -> list[str]:
    """A list of texts; a bare text is a list of one (indexed, it would give its first letter)."""
    if key not in row:
        raise RowError("wrong shape", f"no {key!r}")
    value = row[key]
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise RowError("wrong type", f"{key!r} is {_type(value)}, wanted a list of texts")
    for index, text in enumerate(value):
        if not isinstance(text, str):
            raise RowError("wrong type", f"{key!r}[{index}] is {_type(text)}, wanted text")
    return value


def _optional_text(row: dict[str, Any], key: str) -> str | None:
    value = row.get(key)
    if value is None or isinstance(value, str):
        return value
    raise RowError("wrong type", f"{key!r} is {_type(value)}, wanted text")


def _check_object(value: Any, where: str) -> None:
    if isinstance(value, RepeatedKey):
        raise RowError("repeated key", f"{where}: key {_shown(value.key)} stands twice")
    if not isinstance(value, dict):
        raise RowError("not an object", f"{where} is {_type(value)}, wanted an object")


def _count(turns: list[str]) -> str:
    return f"{len(turns)} turn{'' if len(turns) == 1 else 's'}"


def _shown(value: Any) -> str:
    if not isinstance(value, str):
        return _type(value)
    return repr(value) if len(value) <= 40 else f"{value[:37]!r}..."


def _type(value: Any) -> str:
    names = {dict: "an object", RepeatedKey: "an object", list: "a list", str: "text"}
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return names.get(type(value), "a number")
