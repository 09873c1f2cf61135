"""Reads values of a row by type. Raises RowError, which names what was found instead."""

import json
import math
from typing import Any

from simple_llama.data.rows import RepeatedKey, RowError


def texts_of(row: dict[str, Any], key: str) -> list[str]:
    """A list of texts. A single text becomes a list of one."""
    if key not in row:
        raise RowError("wrong shape", f"no {key!r}")
    value = row[key]
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise RowError("wrong type", f"{key!r} is {type_of(value)}, wanted a list of texts")
    for index, text in enumerate(value):
        if not isinstance(text, str):
            raise RowError("wrong type", f"{key!r}[{index}] is {type_of(text)}, wanted text")
    return value


def text_of(row: dict[str, Any], key: str) -> str:
    """The text under a key."""
    if key not in row:
        raise RowError("wrong shape", f"no {key!r}")
    value = row[key]
    if not isinstance(value, str):
        raise RowError("wrong type", f"{key!r} is {type_of(value)}, wanted text")
    return value


def optional_text(row: dict[str, Any], key: str) -> str | None:
    """The text under a key; None if it is absent or null."""
    return None if row.get(key) is None else text_of(row, key)


def check_object(value: Any, where: str) -> None:
    """Raises RowError where a value is not a JSON object. where: its location, for the message."""
    if isinstance(value, RepeatedKey):
        raise RowError("repeated key", f"{where}: key {shown(value.key)} stands twice")
    if not isinstance(value, dict):
        raise RowError("not an object", f"{where} is {type_of(value)}, wanted an object")


def keys_of(row: dict[str, Any]) -> str:
    """The first keys of a row, for messages."""
    return f"keys {', '.join(shown(key) for key in list(row)[:6]) or 'none'}"


def shown(value: Any) -> str:
    """A value for messages: text in quotes, shortened; of others the type."""
    if not isinstance(value, str):
        return type_of(value)
    return repr(value) if len(value) <= 40 else f"{value[:37]!r}..."


def type_of(value: Any) -> str:
    """The JSON type of a value, for messages."""
    names = {dict: "an object", RepeatedKey: "an object", list: "a list", str: "text"}
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    return names.get(type(value), "a number")
