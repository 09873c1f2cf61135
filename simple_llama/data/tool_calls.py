"""Converts tools and tool calls from the forms that data sets use into that of chat templates:

    tools        [{"type": "function", "function": {"name": ..., "parameters": {...}}}]
    tool_calls   [{"type": "function", "function": {"name": ..., "arguments": {...}}}], with an "id"
                 if the data has one

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

TOOL_CALL_REASON = "tool calls"
Call = dict[str, Any]
TOOLS_TAG = re.compile(r"<tools>(.*?)</tools>", re.DOTALL)
TOOL_CALL_TAG = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
TOOL_RESPONSE_TAG = re.compile(r"\s*<tool_response>\n?(.*?)\n?</tool_response>\s*", re.DOTALL)
FUNCTION_TAG = re.compile(r"<function=([^<>\n]+)>(.*?)</function>", re.DOTALL)
PARAMETER_TAG = re.compile(r"<parameter=([^<>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
ARGUMENT_KEYS = ("arguments", "parameters")
MAX_DEPTH = 64


def read_tools(value: Any, where: str) -> list[dict[str, Any]]:
    """The tools of a list, an object or their JSON text; [] if there are none. Each element may be
    a tool, or the function of one. Raises RowError."""
    if isinstance(value, str):
        value = parse_json(value, where) if value.strip() else None
    if value is None:
        return []
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise RowError(TOOL_CALL_REASON, f"{where} is {type_of(value)}, wanted a list of tools")
    return [_tool(one, f"{where}[{index}]") for index, one in enumerate(value)]


def _tool(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        value = parse_json(value, where)
    check_object(value, where)
    tool = value if "function" in value else {"type": "function", "function": value}
    check_object(tool["function"], where)
    if not isinstance(tool["function"].get("name"), str):
        detail = f"{where}: {keys_of(tool['function'])}, wanted a function with its 'name'"
        raise RowError(TOOL_CALL_REASON, detail)
    check_json_value(tool, where)
    return tool


def extract_tools(system: str) -> list[dict[str, Any]]:
    """The tools that a system prompt lists in <tools></tools>, as one JSON text or one per line; []
    if something else stands there."""
    tools: list[dict[str, Any]] = []
    for block in TOOLS_TAG.findall(system):
        for parts in ([block], list(filter(str.strip, block.splitlines()))):
            with suppress(RowError):
                tools += [tool for part in parts for tool in read_tools(part, "<tools>")]
                break
        else:
            return []
    return tools


def read_calls(value: Any, where: str) -> list[Call]:
    """The calls of an object, a list of objects or their JSON text. The arguments of a call may be
    JSON text too. Raises RowError."""
    if isinstance(value, str):
        value = parse_json(value, where)
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise RowError(TOOL_CALL_REASON, f"{where} is an empty list, wanted calls")
    return [_call(one, f"{where}[{index}]") for index, one in enumerate(calls)]


def _call(value: Any, where: str) -> Call:
    check_object(value, where)
    function = value.get("function", value)
    check_object(function, where)
    name = function.get("name")
    given = [function[key] for key in ARGUMENT_KEYS if function.get(key) is not None]
    if not isinstance(name, str) or not name:
        raise RowError(
            TOOL_CALL_REASON, f"{where}: {keys_of(function)}, wanted 'name' and 'arguments'"
        )
    arguments = given[0] if given else {}
    if isinstance(arguments, str):
        arguments = parse_json(arguments, f"{where}: arguments") if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise RowError(
            TOOL_CALL_REASON, f"{where}: arguments are {type_of(arguments)}, wanted an object"
        )
    check_json_value(arguments, f"{where}: arguments")
    own = {"id": value["id"]} if isinstance(value.get("id"), str) else {}
    return {**own, "type": "function", "function": {"name": name, "arguments": arguments}}


def extract_calls(text: str, where: str) -> tuple[str, list[Call]]:
    """Split a reply into the text before its <tool_call></tool_call> tags, and the calls in them.
    Raises RowError where text follows a call."""
    found = list(TOOL_CALL_TAG.finditer(text))
    if not found:
        return text, []
    ends = [one.end() for one in found]
    starts = [*(one.start() for one in found[1:]), len(text)]
    if any(text[end:start].strip() for end, start in zip(ends, starts)):
        raise RowError(TOOL_CALL_REASON, f"{where}: text after a call, wanted it before")
    calls = [call for one in found for call in read_calls(one[1].strip(), where)]
    return text[: found[0].start()].rstrip(), calls


def extract_results(text: str) -> list[str]:
    """The results in <tool_response></tool_response> if the text consists of such tags alone;
    otherwise the text itself."""
    found = TOOL_RESPONSE_TAG.findall(text)
    return found if found and not TOOL_RESPONSE_TAG.sub("", text) else [text]


def parse_json(text: str, where: str) -> Any:
    """Parse JSON, or a Python literal, which some data sets have instead. Raises RowError."""
    try:
        return DECODER.decode(text.strip())
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise RowError(TOOL_CALL_REASON, f"{where}: no JSON: {shown(text)}") from None


def check_json_value(value: Any, where: str, depth: int = 0) -> None:
    """Raises RowError where a value cannot be written as JSON."""
    if depth > MAX_DEPTH:
        raise RowError(TOOL_CALL_REASON, f"{where}: more than {MAX_DEPTH} levels deep")
    if isinstance(value, RepeatedKey):
        raise RowError("repeated key", f"{where}: key {shown(value.key)} stands twice")
    if isinstance(value, dict):
        for key, one in value.items():
            if not isinstance(key, str):
                raise RowError(TOOL_CALL_REASON, f"{where}: a key is {type_of(key)}, wanted text")
            check_json_value(one, where, depth + 1)
    elif isinstance(value, list):
        for one in value:
            check_json_value(one, where, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise RowError(TOOL_CALL_REASON, f"{where}: {value} is no number of JSON")
    elif value is not None and not isinstance(value, str | int | float):
        raise RowError(
            TOOL_CALL_REASON, f"{where}: {type(value).__name__} is nothing that JSON has"
        )


def parse_reply(text: str) -> dict[str, Any]:
    """Parse what a model generated into a message with "content" and perhaps "tool_calls".

    Calls stand in <tool_call> tags as JSON or in Qwen3-Coder's form, or the whole reply after its
    reasoning is JSON. What cannot be parsed as calls stays text.
    """
    before, closed, said = text.rpartition("</think>")
    try:
        if TOOL_CALL_TAG.search(said):
            said, calls = extract_calls(FUNCTION_TAG.sub(_as_json, said), "")
        elif said.strip().startswith(("{", "[")) and _looks_like_calls(value := json.loads(said)):
            said, calls = "", read_calls(value, "")
        else:
            calls = []
    except (RowError, ValueError, RecursionError):
        calls = []
    if not calls:
        return {"role": "assistant", "content": text}
    return {"role": "assistant", "content": before + closed + said, "tool_calls": calls}


def _as_json(function: re.Match[str]) -> str:
    """<function=f><parameter=a>1</parameter></function> as a JSON call; a parameter that is not
    JSON becomes a string."""
    arguments: dict[str, Any] = {}
    for name, value in PARAMETER_TAG.findall(function[2]):
        try:
            arguments[name] = json.loads(value)
        except (ValueError, RecursionError):
            arguments[name] = value
    return json.dumps({"name": function[1], "arguments": arguments})


def parse_calls(text: str) -> list[tuple[str, str]]:
    """Name and arguments of each call in a generated reply; the arguments as JSON with sorted keys,
    so that equal calls compare equal."""
    calls = [call["function"] for call in parse_reply(text).get("tool_calls", [])]
    return [(one["name"], json.dumps(one["arguments"], sort_keys=True)) for one in calls]


def _looks_like_calls(value: Any) -> bool:
    calls = value if isinstance(value, list) else [value]
    return all(isinstance(one, dict) and any(key in one for key in ARGUMENT_KEYS) for one in calls)
