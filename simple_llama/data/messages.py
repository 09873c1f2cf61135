"""Converts a message of a row into one form: role, text, reasoning, tool calls."""

import json
from collections.abc import Iterable
from typing import Any

from simple_llama.data.rows import RowError
from simple_llama.data.supervision import MESSAGE_FLAGS, message_weight
from simple_llama.data.tool_calls import (
    TOOL_CALL_REASON,
    check_json_value,
    extract_calls,
    extract_results,
    read_calls,
)
from simple_llama.data.values import check_object, keys_of, shown, type_of

Message = dict[str, Any]
"""{"role": "system" | "user" | "assistant" | "tool", "content": text} and optional keys:
system: "tools", "chat_template_kwargs"; assistant: "reasoning_content", "tool_calls", "weight"
(0 or 1); tool: "tool_call_id", "name"."""

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}
"""Name of a message's author as data sets write it, in lower case → role."""
CALL_ROLES = ("tool_call", "function_call", "function-call")
"""Roles of a reply whose text is a tool call as JSON."""
RESULT_ROLES = (
    *("tool", "tools", "tool_response", "ipython", "observation"),
    *("function", "function_response", "function-response"),
)
"""Roles of a tool's result."""
CALL_KEYS = ("tool_calls", "function_call")
TOOL_KEYS = ("tools", "functions")
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
MEDIA_KEYS = ("image", "images", "video", "videos", "audio", "audios")
UNTRAINABLE_KEYS = {
    **dict.fromkeys((*TOOL_KEYS, *CALL_KEYS), TOOL_CALL_REASON),
    **dict.fromkeys(MEDIA_KEYS, "images or other media"),
}
"""Key → why a row or message that has a value under it cannot be trained on."""

TEXT_KEYS = ("content", "value", "text")
"""Keys of a message's text."""
MESSAGE_KEYS = frozenset(
    (
        *("role", "from", "weight", "tool_call_id", "tools", "chat_template_kwargs"),
        *(*TEXT_KEYS, *CALL_KEYS, *REASONING_KEYS, *MESSAGE_FLAGS),
    )
)
"""All keys of a message that are read."""


def role_of(message: Any, where: str) -> str:
    """The role of a message: system, user, assistant or tool. Raises RowError."""
    check_object(message, where)
    name = message["role"] if "role" in message else message.get("from")
    known = name.lower() if isinstance(name, str) else ""
    if known in RESULT_ROLES:
        return "tool"
    if known in CALL_ROLES:
        return "assistant"
    if known not in ROLES:
        detail = f"{where}: role {shown(name)}, wanted system, user, assistant or tool"
        raise RowError("unknown role", detail)
    return ROLES[known]


def read_message(message: dict[str, Any], where: str, *, tools: bool) -> list[Message]:
    """The message in the one form; if its text holds the results of several tools, a message for
    each.

    tools: the row offers tools, so a reply's text may contain calls. Raises RowError.
    """
    role = role_of(message, where)
    refuse_untrainable(message, where, MEDIA_KEYS)
    calls = _calls(message, where) if role == "assistant" else []
    weight = message_weight(message, where) if role == "assistant" else None
    text, parts_weight = _text(message, where, role, called=bool(calls))
    if role == "tool":
        about = {key: message[key] for key in ("tool_call_id", "name") if message.get(key)}
        check_json_value(about, where)
        return [{"role": role, "content": one, **about} for one in extract_results(text)]
    said: Message = {"role": role, "content": text}
    if role == "assistant":
        weight = parts_weight if parts_weight is not None else weight
        thoughts = next((message[key] for key in REASONING_KEYS if message.get(key)), None)
        if isinstance(thoughts, str):
            said["reasoning_content"] = thoughts
        elif thoughts is not None:
            detail = f"{where}: its thoughts are {type_of(thoughts)}, wanted text"
            raise RowError("wrong type", detail)
        if _is_call(message):
            said["content"], calls = "", read_calls(text, where)
        elif tools and not calls:
            said["content"], calls = extract_calls(text, where)
        if calls:
            said["tool_calls"] = calls
        if weight is not None:
            said["weight"] = weight
    return [said]


def _is_call(message: dict[str, Any]) -> bool:
    name = message["role"] if "role" in message else message.get("from")
    return isinstance(name, str) and name.lower() in CALL_ROLES


def _calls(message: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The tool calls under one of CALL_KEYS."""
    key = next((key for key in CALL_KEYS if message.get(key) and message[key] != "[]"), None)
    return [] if key is None else read_calls(message[key], f"{where}: {key!r}")


def _text(
    message: dict[str, Any], where: str, role: str, *, called: bool
) -> tuple[str, int | None]:
    """The message's text, and the weight that its parts have in common, if it has parts."""
    given = [key for key in TEXT_KEYS if key in message]
    if not given and not called:
        detail = f"{where}: {keys_of(message)}, wanted its text as 'content' or 'value'"
        raise RowError("wrong shape", detail)
    key = next((key for key in given if message[key] is not None), None)
    content = message[key] if key else None
    if content is None and called:
        return "", None
    if role == "tool" and (isinstance(content, dict) or not _are_parts(content)):
        check_json_value(content, where)
        return content if isinstance(content, str) else _as_json(content), None
    if isinstance(content, list):
        # chat templates join parts without a separator
        parts = [(part, f"{where}: {key}[{index}]") for index, part in enumerate(content)]
        text = "".join(_part(part, place) for part, place in parts)
        return text, _weight_of_parts(parts) if role == "assistant" else None
    if not isinstance(content, str):
        found = f"{(key or given[0])!r} is {type_of(content)}"
        raise RowError("wrong type", f"{where}: {found}, wanted text")
    return content, None


def _as_json(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _are_parts(content: Any) -> bool:
    """Whether `content` is a list of a message's parts, rather than a tool's result."""
    return isinstance(content, list) and all(
        isinstance(part, dict) and "type" in part for part in content
    )


def _weight_of_parts(parts: list[tuple[Any, str]]) -> int | None:
    own = {message_weight(part, where) for part, where in parts}
    if len(own) > 1:
        where = parts[0][1]
        raise RowError("partial supervision", f"{where}: its parts have different weights")
    return own.pop() if own else None


def _part(part: Any, where: str) -> str:
    check_object(part, where)
    kind, text = part.get("type"), part.get("text")
    if kind == "text" and isinstance(text, str):
        return text
    if isinstance(kind, str) and any(word in kind for word in ("image", "audio", "video", "file")):
        raise RowError("images or other media", f"{where}: {shown(kind)}; only text is trained")
    raise RowError("wrong type", f"{where}: a part of type {shown(kind)}, wanted text")


def refuse_untrainable(
    value: dict[str, Any], where: str, keys: Iterable[str] = tuple(UNTRAINABLE_KEYS)
) -> None:
    """Raises RowError where a value stands under one of `keys`: no prompt format can write it."""
    for key in keys:
        if value.get(key) and value[key] != "[]":
            raise RowError(UNTRAINABLE_KEYS[key], f"{where}: {key!r}; only text is trained")
