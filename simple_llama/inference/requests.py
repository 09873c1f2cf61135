"""Prompts to be answered, from a file of any conversation format or of plain lines."""

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
"""Before the text of some editors' files, and so within files that were put together."""
TO_COME = "."
"""Stands for the reply that a row does not have yet, because the formats want one."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A conversation that ends with a user turn or a tool's result."""

    id: str
    messages: list[Message]
    reference: str | None
    """The reply that stands in the file."""


def read_tool_file(path: str) -> list[dict[str, Any]]:
    """Tools as JSON: a list of functions, or of tools that are functions. Raises InputError."""
    try:
        tools = read_tools(read_json(path), path)
    except RowError as error:
        raise InputError(str(error)) from None
    if not tools:
        raise InputError(f"{path}: no tools in it")
    return tools


def with_tools(request: Request, tools: list[dict[str, Any]], system_prompt: str) -> Request:
    """Also with these tools, where it has none of its own."""
    first: Message = {"role": "system", "content": system_prompt}
    messages = request.messages
    if messages[0]["role"] == "system":
        first, *messages = messages
    return replace(request, messages=[{"tools": tools, **first}, *messages]) if tools else request


def read_requests(path: str, system_prompt: str) -> Iterator[Request]:
    """Of a .txt file each line that is not blank; of any other file or folder each row, whose last
    reply, if it has one, becomes the reference.

    system_prompt: what SimpleLLaMA's CUSTOM, or no system prompt, stands for. Raises InputError at
    the first row that is no conversation.
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
    """Of a reply that calls tools, its text and each call as JSON, a line each."""
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
    """A row without its last reply as one that has it; any other row itself."""
    reply: dict[str, Any] = {}
    match value:
        case {"messages": [*messages]} if _asks(messages):
            reply["messages"] = [*messages, {"role": "assistant", "content": TO_COME}]
        case {"conversations": [*messages]} if _asks(messages):
            reply["conversations"] = [*messages, {"from": "gpt", "value": TO_COME}]
        case {"instruction": str()} if value.get("output") in (None, ""):
            reply["output"] = TO_COME
        case {"prompt": str()} if value.get("completion") in (None, ""):
            reply["completion"] = TO_COME
        case {"prompt": [*_]} if value.get("completion") in (None, []):
            reply["completion"] = [{"role": "assistant", "content": TO_COME}]
        case {"User": str()} if "Assistant" not in value:
            reply["Assistant"] = TO_COME
        case {"User": [*users], "Assistant": [*replies]} if len(replies) == len(users) - 1:
            reply["Assistant"] = [*replies, TO_COME]
        case {"User": [_]} if "Assistant" not in value:
            reply["Assistant"] = [TO_COME]
    return {**value, **reply} if reply else value


def _asks(messages: list[Any]) -> bool:
    """Whether the last message is a user's or a tool's."""
    match messages:
        case [*_, {"role": str(role)} | {"from": str(role)}]:
            return ROLES.get(role.lower()) == "user" or role.lower() in RESULT_ROLES
    return False
