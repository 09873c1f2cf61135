"""Lists of messages → conversations: whose turn it is, and what stands beside the list."""

import json
from dataclasses import dataclass, field
from typing import Any

from simple_llama.data.messages import (
    CALLS,
    MEDIA,
    TOOLS,
    Message,
    read_message,
    refuse_untrainable,
    role_of,
)
from simple_llama.data.rows import RowError
from simple_llama.data.tool_calls import check_plain, listed_tools, parsed, read_tools
from simple_llama.data.values import check_object, optional_text, type_of

LABELS = ("category", "Category")
SYSTEM = ("system", "system_prompt")
VARIABLES = "chat_template_kwargs"
TAKEN = {"messages", "tools", "documents", "add_generation_prompt"}
OF_LISTS = (*SYSTEM, *LABELS, *TOOLS, VARIABLES)
"""Keys that stand beside lists of messages."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns as their format gives them; the texts are not looked at yet."""

    system: str | None
    turns: list[Message]
    """user, assistant, user, ... and at last an assistant's; after one with calls, their results
    and another of the assistant's."""
    category: str | None
    tools: list[dict[str, Any]] = field(default_factory=list)
    """What the assistant may call."""
    variables: dict[str, Any] = field(default_factory=dict)
    """What the row says to its chat template: enable_thinking and the like."""


def listed(row: dict[str, Any], key: str) -> list[tuple[str, Any]]:
    """Messages, each with the name of its place."""
    messages = row[key]
    if not isinstance(messages, list):
        raise RowError("wrong type", f"{key!r} is {type_of(messages)}, wanted a list")
    return [(f"{key}[{index}]", message) for index, message in enumerate(messages)]


def from_list(row: dict[str, Any], messages: list[tuple[str, Any]]) -> Conversation:
    """Messages in order, a system prompt first or under 'system'; that of a message wins."""
    refuse_untrainable(row, "the row", (*CALLS, *MEDIA))
    system, variables, tools = system_of(row), row.get(VARIABLES), _tools(row)
    roles = [role_of(message, where) for where, message in messages]
    if roles[:1] == ["system"]:
        (where, first), *messages = messages
        [said] = read_message(first, where, tools=False)
        system = said["content"]
        tools = tools or read_tools(first.get("tools"), f"{where}: 'tools'")
        variables = variables or first.get(VARIABLES)
    if system and (offered := listed_tools(system)):
        # it says how to call them, which the chat template does in its own words
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
    """Who may speak next."""
    if not turns:
        return ("user",)
    last = turns[-1]
    if last["role"] == "tool":
        return ("assistant", "tool")
    if last["role"] == "user":
        return ("assistant",)
    return ("tool",) if last.get("tool_calls") else ("user",)


def _tools(row: dict[str, Any]) -> list[dict[str, Any]]:
    found = [read_tools(row.get(key), f"the row: {key!r}") for key in TOOLS]
    return found[0] or found[1]


def _variables(value: Any) -> dict[str, Any]:
    """What `apply_chat_template` takes beside the messages, as TRL reads it."""
    if isinstance(value, str):
        value = parsed(value, f"the row: {VARIABLES!r}")
    if value is None:
        return {}
    check_object(value, f"the row: {VARIABLES!r}")
    if taken := value.keys() & TAKEN:
        detail = f"the row: {VARIABLES!r}: {', '.join(sorted(taken))} cannot be set there"
        raise RowError("wrong shape", detail)
    check_plain(value, f"the row: {VARIABLES!r}")
    return {key: one for key, one in value.items() if one is not None}


def system_of(row: dict[str, Any]) -> str | None:
    """The key beside a conversation. Tables have it in every row, and blank where there is none; a
    system message or Template that is blank says that there is to be none."""
    given = [optional_text(row, key) or "" for key in SYSTEM]
    return next((text for text in given if text.strip()), None)


def category_of(row: dict[str, Any]) -> str | None:
    """A label as text: a number as it is written, of a list its labels together."""
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
