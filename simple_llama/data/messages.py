"""A message of a row → its role, its text and whether it is trained."""

from typing import Any

from simple_llama.data.rows import RowError
from simple_llama.data.supervision import MESSAGE_FLAGS, message_weight
from simple_llama.data.values import check_object, keys_of, shown, type_of

Message = dict[str, Any]
"""{"role": "system" | "user" | "assistant", "content": text}, and of a reply that says whether it
is trained also "weight": 0 | 1."""

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
"""What a message's author is called in the wild, in small letters → its role."""
TOOL_ROLES = {
    *("tool", "tools", "tool_call", "tool_response", "ipython", "observation"),
    *("function", "function_call", "function-call", "function_response", "function-response"),
}
UNTRAINABLE = {
    **dict.fromkeys(("tools", "functions", "tool_calls", "function_call"), "tool calls"),
    **dict.fromkeys(
        ("image", "images", "video", "videos", "audio", "audios"), "images or other media"
    ),
}
"""Key of a row or a message → why it cannot be trained on where the key has a value."""


TEXT_KEYS = ("content", "value", "text")
"""Where a message's text may stand."""
MESSAGE_KEYS = frozenset(("role", "from", "weight", *TEXT_KEYS, *MESSAGE_FLAGS))


def read_message(message: Any, where: str) -> tuple[str, str, int | None]:
    """Role, text, and whether it says that it is trained: 1, 0 or nothing."""
    check_object(message, where)
    name = message["role"] if "role" in message else message.get("from")
    known = name.lower() if isinstance(name, str) else ""
    if known in TOOL_ROLES:
        raise RowError("tool calls", f"{where}: role {shown(name)}; only text is trained")
    refuse_untrainable(message, where)
    if known not in ROLES:
        detail = f"{where}: role {shown(name)}, wanted system, user or assistant"
        raise RowError("unknown role", detail)
    weight = message_weight(message, where) if ROLES[known] == "assistant" else None
    given = [key for key in TEXT_KEYS if key in message]
    if not given:
        detail = f"{where}: {keys_of(message)}, wanted its text as 'content' or 'value'"
        raise RowError("wrong shape", detail)
    key = next((key for key in given if message[key] is not None), given[0])
    content = message[key]
    if isinstance(content, list):
        # chat templates put parts together with nothing between them
        parts = [(part, f"{where}: {key}[{index}]") for index, part in enumerate(content)]
        text = "".join(_part(part, place) for part, place in parts)
        if ROLES[known] == "assistant":
            weight = _weight_with_parts(weight, parts)
        return ROLES[known], text, weight
    if not isinstance(content, str):
        raise RowError("wrong type", f"{where}: {key!r} is {type_of(content)}, wanted text")
    return ROLES[known], content, weight


def _weight_with_parts(weight: int | None, parts: list[tuple[Any, str]]) -> int | None:
    """A reply's weight where its parts may have their own."""
    own = {message_weight(part, where) for part, where in parts}
    if len(own) > 1:
        where = parts[0][1]
        raise RowError("partial supervision", f"{where}: its parts have different weights")
    return own.pop() if own and own != {None} else weight


def _part(part: Any, where: str) -> str:
    check_object(part, where)
    kind, text = part.get("type"), part.get("text")
    if kind == "text" and isinstance(text, str):
        return text
    if isinstance(kind, str) and any(word in kind for word in ("image", "audio", "video", "file")):
        raise RowError("images or other media", f"{where}: {shown(kind)}; only text is trained")
    raise RowError("wrong type", f"{where}: a part of type {shown(kind)}, wanted text")


def refuse_untrainable(value: dict[str, Any], where: str) -> None:
    """What the formats allow and no prompt format here can show."""
    if UNTRAINABLE.keys().isdisjoint(value):
        return
    for key, reason in UNTRAINABLE.items():
        if value.get(key) and value[key] != "[]":
            raise RowError(reason, f"{where}: {key!r}; only text is trained")
