"""Tools, and calls of them, as data sets write them → one form, that of chat templates:

    tools        [{"type": "function", "function": {"name": ..., "parameters": {...}}}]
    tool_calls   [{"type": "function", "function": {"name": ..., "arguments": {...}}}], and an "id"

https://huggingface.co/docs/transformers/chat_extras and, for calls within a text,
https://huggingface.co/datasets/NousResearch/hermes-function-calling-v1
"""

import ast
import json
import math
import re
from contextlib import suppress
from typing import Any

from simple_llama.data.rows import DECODER, RepeatedKey, RowError
from simple_llama.data.values import check_object, keys_of, shown, type_of

REASON = "tool calls"
Call = dict[str, Any]
LISTED = re.compile(r"<tools>(.*?)</tools>", re.DOTALL)
CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
RESULT = re.compile(r"\s*<tool_response>\n?(.*?)\n?</tool_response>\s*", re.DOTALL)
FUNCTION = re.compile(r"<function=([^<>\n]+)>(.*?)</function>", re.DOTALL)
PARAMETER = re.compile(r"<parameter=([^<>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
ARGUMENTS = ("arguments", "parameters")
MAX_DEPTH = 64


def read_tools(value: Any, where: str) -> list[dict[str, Any]]:
    """From a list or its JSON text, of functions or of tools that are functions; empty where there
    are none. Raises RowError."""
    if isinstance(value, str):
        value = parsed(value, where) if value.strip() else None
    if value is None:
        return []
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise RowError(REASON, f"{where} is {type_of(value)}, wanted a list of tools")
    return [_tool(one, f"{where}[{index}]") for index, one in enumerate(value)]


def _tool(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        value = parsed(value, where)
    check_object(value, where)
    tool = value if "function" in value else {"type": "function", "function": value}
    check_object(tool["function"], where)
    if not isinstance(tool["function"].get("name"), str):
        detail = f"{where}: {keys_of(tool['function'])}, wanted a function with its 'name'"
        raise RowError(REASON, detail)
    check_plain(tool, where)
    return tool


def listed_tools(system: str) -> list[dict[str, Any]]:
    """Those that a system prompt lists in <tools></tools>, together or one a line; none where
    something else stands there."""
    tools: list[dict[str, Any]] = []
    for block in LISTED.findall(system):
        for parts in ([block], list(filter(str.strip, block.splitlines()))):
            with suppress(RowError):
                tools += [tool for part in parts for tool in read_tools(part, "<tools>")]
                break
        else:
            return []
    return tools


def read_calls(value: Any, where: str) -> list[Call]:
    """From a call or a list of them, or their JSON text; arguments may be JSON text too. Raises
    RowError."""
    if isinstance(value, str):
        value = parsed(value, where)
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise RowError(REASON, f"{where} is an empty list, wanted calls")
    return [_call(one, f"{where}[{index}]") for index, one in enumerate(calls)]


def _call(value: Any, where: str) -> Call:
    check_object(value, where)
    function = value.get("function", value)
    check_object(function, where)
    name = function.get("name")
    given = [function[key] for key in ARGUMENTS if function.get(key) is not None]
    if not isinstance(name, str) or not name:
        raise RowError(REASON, f"{where}: {keys_of(function)}, wanted 'name' and 'arguments'")
    arguments = given[0] if given else {}
    if isinstance(arguments, str):
        arguments = parsed(arguments, f"{where}: arguments") if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise RowError(REASON, f"{where}: arguments are {type_of(arguments)}, wanted an object")
    check_plain(arguments, f"{where}: arguments")
    own = {"id": value["id"]} if isinstance(value.get("id"), str) else {}
    return {**own, "type": "function", "function": {"name": name, "arguments": arguments}}


def calls_within(text: str, where: str) -> tuple[str, list[Call]]:
    """A reply's text before its calls in <tool_call></tool_call>, and these."""
    found = list(CALL.finditer(text))
    if not found:
        return text, []
    ends = [one.end() for one in found]
    starts = [*(one.start() for one in found[1:]), len(text)]
    if any(text[end:start].strip() for end, start in zip(ends, starts)):
        raise RowError(REASON, f"{where}: text after a call, wanted it before")
    calls = [call for one in found for call in read_calls(one[1].strip(), where)]
    return text[: found[0].start()].rstrip(), calls


def results_within(text: str) -> list[str]:
    """The results in <tool_response></tool_response>, if a text is nothing else; else the text."""
    found = RESULT.findall(text)
    return found if found and not RESULT.sub("", text) else [text]


def parsed(text: str, where: str) -> Any:
    """What JSON text says; some data sets write Python's literals. Raises RowError."""
    try:
        return DECODER.decode(text.strip())
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise RowError(REASON, f"{where}: no JSON: {shown(text)}") from None


def check_plain(value: Any, where: str, depth: int = 0) -> None:
    """Raises RowError where a value is not what JSON can say."""
    if depth > MAX_DEPTH:
        raise RowError(REASON, f"{where}: more than {MAX_DEPTH} levels deep")
    if isinstance(value, RepeatedKey):
        raise RowError("repeated key", f"{where}: key {shown(value.key)} stands twice")
    if isinstance(value, dict):
        for key, one in value.items():
            if not isinstance(key, str):
                raise RowError(REASON, f"{where}: a key is {type_of(key)}, wanted text")
            check_plain(one, where, depth + 1)
    elif isinstance(value, list):
        for one in value:
            check_plain(one, where, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise RowError(REASON, f"{where}: {value} is no number of JSON")
    elif value is not None and not isinstance(value, str | int | float):
        raise RowError(REASON, f"{where}: {type(value).__name__} is nothing that JSON has")


def reply_of(text: str) -> dict[str, Any]:
    """What a model wrote as a message: calls in <tool_call> tags, as JSON or as Qwen3-Coder has
    them, or all but its thoughts as JSON, are such; what can't be read as calls is text."""
    before, closed, said = text.rpartition("</think>")
    try:
        if CALL.search(said):
            said, calls = calls_within(FUNCTION.sub(_as_json, said), "")
        elif said.strip().startswith(("{", "[")) and _looks_called(value := json.loads(said)):
            said, calls = "", read_calls(value, "")
        else:
            calls = []
    except (RowError, ValueError, RecursionError):
        calls = []
    if not calls:
        return {"role": "assistant", "content": text}
    return {"role": "assistant", "content": before + closed + said, "tool_calls": calls}


def _as_json(function: re.Match[str]) -> str:
    """Of <function=f><parameter=a>1</parameter></function>; a value that is no JSON is a text."""
    arguments: dict[str, Any] = {}
    for name, value in PARAMETER.findall(function[2]):
        try:
            arguments[name] = json.loads(value)
        except (ValueError, RecursionError):
            arguments[name] = value
    return json.dumps({"name": function[1], "arguments": arguments})


def called_in(text: str) -> list[tuple[str, str]]:
    """Name and arguments, as JSON with sorted keys, of each call in what a model wrote."""
    calls = [call["function"] for call in reply_of(text).get("tool_calls", [])]
    return [(one["name"], json.dumps(one["arguments"], sort_keys=True)) for one in calls]


def _looks_called(value: Any) -> bool:
    calls = value if isinstance(value, list) else [value]
    return all(isinstance(one, dict) and any(key in one for key in ARGUMENTS) for one in calls)
