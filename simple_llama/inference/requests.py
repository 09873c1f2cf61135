"""Reading prompts to answer, from a file in any conversation format or of plain lines."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simple_llama.data.examples import to_example
from simple_llama.data.formats import ConversationReader
from simple_llama.data.messages import RESULT_ROLES, ROLES, Message
from simple_llama.data.rows import RowError, read_rows
from simple_llama.data.tool_calls import read_tools
from simple_llama.errors import InputError
from simple_llama.files import read_json

BYTE_ORDER_MARK = "\ufeff"
"""Some editors begin a file with it; concatenated files then have it within."""
PLACEHOLDER_REPLY = "."
"""Completes a row that has no last reply: the formats refuse one without."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A conversation that ends with a user turn or a tool's result."""

    id: str
    messages: list[Message]
    reference: str | None
    """The reply that the file has."""


def read_tool_file(path: str) -> list[dict[str, Any]]:
    """Read tools from JSON: a list of functions, or of function tools. Raises InputError."""
    try:
        tools = read_tools(read_json(path), path)
    except RowError as error:
        raise InputError(str(error)) from None
    if not tools:
        raise InputError(f"{path}: no tools in it")
    return tools


def with_tools(request: Request, tools: list[dict[str, Any]], system_prompt: str) -> Request:
    """Offer these tools in a request that has none of its own."""
    first: Message = {"role": "system", "content": system_prompt}
    messages = request.messages
    if messages[0]["role"] == "system":
        first, *messages = messages
    return replace(request, messages=[{"tools": tools, **first}, *messages]) if tools else request


def read_requests(path: str, system_prompt: str) -> Iterator[Request]:
    """Yield a request for each line of a .txt file that is not blank, or for each row of any other
    file or folder. A row's last reply, if it has one, becomes the reference.

    system_prompt: used where a row has none, or SimpleLLaMA's CUSTOM. Raises InputError at the
    first row that is no conversation.
    """
    if Path(path).suffix == ".txt":
        yield from _lines(path)
        return
    read = ConversationReader(to_train=False)
    for row in read_rows(path):
        completed = replace(row, value=_completed(row.value))
        try:
            example = to_example(completed, read, system_prompt)
        except RowError as error:
            raise InputError(f"{path}: {row.id}: {error}") from None
        given = row.value.get("id")
        system, *turns, reply = example.messages
        yield Request(
            id=given if isinstance(given, str) else row.id,
            messages=[system, *turns],
            reference=None if completed.value is not row.value else _as_text(reply),
        )


def _as_text(reply: Message) -> str:
    """A reply as text. Each tool call is a line of JSON below it."""
    calls = [json.dumps(one["function"], ensure_ascii=False) for one in reply.get("tool_calls", [])]
    return "\n".join([*([reply["content"]] if reply["content"] or not calls else []), *calls])


def _lines(path: str) -> Iterator[Request]:
    name = Path(path).name
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            for index, line in enumerate(file):
                if text := line.lstrip(BYTE_ORDER_MARK).strip():
                    message = {"role": "user", "content": text}
                    yield Request(id=f"{name}[{index}]", messages=[message], reference=None)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error.reason}") from None


def _completed(value: Any) -> Any:
    """Complete a row that lacks its last reply; return any other row as it is."""
    reply: dict[str, Any] = {}
    match value:
        case {"messages": [*messages]} if _asks(messages):
            reply["messages"] = [*messages, {"role": "assistant", "content": PLACEHOLDER_REPLY}]
        case {"conversations": [*messages]} if _asks(messages):
            reply["conversations"] = [*messages, {"from": "gpt", "value": PLACEHOLDER_REPLY}]
        case {"instruction": str()} if value.get("output") in (None, ""):
            reply["output"] = PLACEHOLDER_REPLY
        case {"prompt": str()} if value.get("completion") in (None, ""):
            reply["completion"] = PLACEHOLDER_REPLY
        case {"prompt": [*_]} if value.get("completion") in (None, []):
            reply["completion"] = [{"role": "assistant", "content": PLACEHOLDER_REPLY}]
        case {"User": str()} if "Assistant" not in value:
            reply["Assistant"] = PLACEHOLDER_REPLY
        case {"User": [*users], "Assistant": [*replies]} if len(replies) == len(users) - 1:
            reply["Assistant"] = [*replies, PLACEHOLDER_REPLY]
        case {"User": [_]} if "Assistant" not in value:
            reply["Assistant"] = [PLACEHOLDER_REPLY]
    return {**value, **reply} if reply else value


def _asks(messages: list[Any]) -> bool:
    """Whether the last message is a user's or a tool's."""
    match messages:
        case [*_, {"role": str(role)} | {"from": str(role)}]:
            return ROLES.get(role.lower()) == "user" or role.lower() in RESULT_ROLES
    return False
