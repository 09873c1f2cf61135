"""Converts lists of messages into conversations: checks the order of roles, and reads the keys
beside the list."""

import json
from dataclasses import dataclass, field
from typing import Any

from simple_llama.data.messages import (
    CALL_KEYS,
    MEDIA_KEYS,
    TOOL_KEYS,
    Message,
    read_message,
    refuse_untrainable,
    role_of,
)
from simple_llama.data.rows import RowError
from simple_llama.data.tool_calls import check_json_value, extract_tools, parse_json, read_tools
from simple_llama.data.values import check_object, optional_text, type_of

CATEGORY_KEYS = ("category", "Category")
SYSTEM_KEYS = ("system", "system_prompt")
TEMPLATE_VARIABLES = "chat_template_kwargs"
RESERVED_VARIABLES = {"messages", "tools", "documents", "add_generation_prompt"}
"""Variables of a chat template that a row cannot set."""
KEYS_BESIDE_MESSAGES = (*SYSTEM_KEYS, *CATEGORY_KEYS, *TOOL_KEYS, TEMPLATE_VARIABLES)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation as its data format gives it; its texts are not checked yet."""

    system: str | None
    turns: list[Message]
    """user, assistant, user, ..., assistant. After an assistant's message with tool calls come the
    tools' results and the next message of the assistant."""
    category: str | None
    tools: list[dict[str, Any]] = field(default_factory=list)
    """Tools that the assistant may call."""
    variables: dict[str, Any] = field(default_factory=dict)
    """Variables for the chat template, such as enable_thinking."""


def located_messages(row: dict[str, Any], key: str) -> list[tuple[str, Any]]:
    """The messages under a key, each with its location for error messages: `messages[3]`."""
    messages = row[key]
    if not isinstance(messages, list):
        raise RowError("wrong type", f"{key!r} is {type_of(messages)}, wanted a list")
    return [(f"{key}[{index}]", message) for index, message in enumerate(messages)]


def conversation_of(row: dict[str, Any], messages: list[tuple[str, Any]]) -> Conversation:
    """The conversation of a list of messages. Raises RowError.

    A system prompt may be the first message or stand under a key of the row; the message wins.
    """
    refuse_untrainable(row, "the row", (*CALL_KEYS, *MEDIA_KEYS))
    system, variables, tools = system_of(row), row.get(TEMPLATE_VARIABLES), _tools(row)
    roles = [role_of(message, where) for where, message in messages]
    if roles[:1] == ["system"]:
        (where, first), *messages = messages
        [said] = read_message(first, where, tools=False)
        system = said["content"]
        tools = tools or read_tools(first.get("tools"), f"{where}: 'tools'")
        variables = variables or first.get(TEMPLATE_VARIABLES)
    if system and (offered := extract_tools(system)):
        # the system prompt explains tool calls; the chat template explains them in its own words
        system, tools = "", tools or offered
    turns: list[Message] = []
    for where, message in messages:
        for said in read_message(message, where, tools=bool(tools) or "tool" in roles):
            wanted = _next_roles(turns)
            if said["role"] not in wanted:
                detail = f"{where}: role {said['role']!r}, wanted {' or '.join(map(repr, wanted))}"
                raise RowError("wrong order of roles", detail)
            turns.append(said)
    if not turns:
        raise RowError("no turns", "the list of messages holds no user turn")
    if turns[-1]["role"] != "assistant":
        raise RowError("turns do not pair up", "the last message is not the assistant's")
    return Conversation(system, turns, category_of(row), tools, _variables(variables))


def _next_roles(turns: list[Message]) -> tuple[str, ...]:
    """The roles that the next message may have."""
    if not turns:
        return ("user",)
    last = turns[-1]
    if last["role"] == "tool":
        return ("assistant", "tool")
    if last["role"] == "user":
        return ("assistant",)
    return ("tool",) if last.get("tool_calls") else ("user",)


def _tools(row: dict[str, Any]) -> list[dict[str, Any]]:
    found = [read_tools(row.get(key), f"the row: {key!r}") for key in TOOL_KEYS]
    return found[0] or found[1]


def _variables(value: Any) -> dict[str, Any]:
    """The chat template's variables of a row, under the key that TRL reads."""
    if isinstance(value, str):
        value = parse_json(value, f"the row: {TEMPLATE_VARIABLES!r}")
    if value is None:
        return {}
    check_object(value, f"the row: {TEMPLATE_VARIABLES!r}")
    if taken := value.keys() & RESERVED_VARIABLES:
        detail = f"the row: {TEMPLATE_VARIABLES!r}: {', '.join(sorted(taken))} cannot be set there"
        raise RowError("wrong shape", detail)
    check_json_value(value, f"the row: {TEMPLATE_VARIABLES!r}")
    return {key: one for key, one in value.items() if one is not None}


def system_of(row: dict[str, Any]) -> str | None:
    """The system prompt under a key of the row; None if it is blank.

    Tables have the key in every row, so blank means absent. A blank system message (or Template) is
    different: it says that the conversation has no system prompt.
    """
    given = [optional_text(row, key) or "" for key in SYSTEM_KEYS]
    return next((text for text in given if text.strip()), None)


def category_of(row: dict[str, Any]) -> str | None:
    """The category of a row as text; the labels of a list are joined by commas."""
    key = "Category" if row.get("category") is None else "category"
    value = row.get(key)
    labels = value if isinstance(value, list) else [value]
    if any(isinstance(label, dict | list) for label in labels):
        raise RowError("wrong type", f"{key!r} is {type_of(value)}, wanted text or a list of texts")
    known = [
        label if isinstance(label, str) else json.dumps(label)
        for label in labels
        if label is not None
    ]
    return ", ".join(known) if known else None
