"""Flat YAML from strangers: plain data, read as DVC reads it, each value of the wanted type."""

import contextlib
import difflib
import math
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import AliasEvent

from simple_llama.errors import InputError

MAX_CHARACTERS = 2**16
"""Of a params file: ruamel.yaml is slow, and a file of parameters short."""
MAX_INTEGER = 10**12
"""What is counted here stays far below, and so it fits every library's integers."""


class _Composer(Composer):
    """Refuses aliases, a few lines of which stand for billions of values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.parser.check_event(AliasEvent):
            mark = self.parser.peek_event().start_mark
            raise ComposerError(None, None, "an alias (*) is not read here", mark)
        return super().compose_node(parent, index)


class _Constructor(SafeConstructor):
    """Refuses a key that stands twice, and merges, which give one twice without a word."""

    def flatten_mapping(self, node: Any) -> None:
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                problem = "a merge (<<) is not read here"
                raise ConstructorError(None, None, problem, key_node.start_mark)
        super().flatten_mapping(node)

    def check_mapping_key(
        self, node: Any, key_node: Any, mapping: Any, key: Any, value: Any
    ) -> bool:
        if key in mapping:
            problem = f"key {shown(key)} stands twice"
            raise ConstructorError(None, None, problem, key_node.start_mark)
        return True


def read_mapping(path: str | Path) -> dict[Any, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, wanted the pipeline's parameters") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{path}: over {MAX_CHARACTERS} characters, wanted a few lines")
    try:
        yaml = YAML(typ="safe", pure=True)  # as DVC's, YAML 1.2
        yaml.Composer, yaml.Constructor = _Composer, _Constructor
        values = yaml.load(text)
    except Exception as error:  # it lets pass what its constructors run into: KeyError, ...
        raise InputError(f"{path}: not valid YAML: {_problem(error)}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: got {type(values).__name__}, wanted lines of 'key: value'")
    return values


def _problem(error: Exception) -> str:
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    if mark is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}: {error.problem}"  # type: ignore[attr-defined]


def typed(where: str, value: object, wanted: Any) -> Any:
    """value as the wanted type; an integer may stand for a float, nothing else is converted."""
    if get_origin(wanted) in (Union, UnionType):
        for one in get_args(wanted):
            with contextlib.suppress(InputError):
                return typed(where, value, one)
    elif get_origin(wanted) is Literal:
        if value in get_args(wanted) and isinstance(value, str):
            return value
    elif wanted is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number):
                return number
    elif type(value) is wanted and (not isinstance(value, str) or value.isprintable()):
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise InputError(f"{where}: got {shown(value)}, wanted at most {MAX_INTEGER:,}")
        return value
    raise InputError(f"{where}: got {shown(value)}, wanted {type_name(wanted)}")


def type_name(wanted: Any) -> str:
    if get_origin(wanted) in (Union, UnionType):
        return " or ".join(map(type_name, get_args(wanted)))
    if get_origin(wanted) is Literal:
        return " or ".join(get_args(wanted))
    names = {
        int: "an integer",
        float: "a finite number",
        bool: "true or false",
        str: "printable text on one line",
    }
    return names[wanted]


def did_you_mean(key: object, known: dict[str, Any]) -> str:
    close = difflib.get_close_matches(key, known, n=1) if isinstance(key, str) else []
    return f" (did you mean {close[0]!r}?)" if close else ""


def shown(value: object) -> str:
    """As it may stand in the file, cut to one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = repr(value)
    except ValueError:  # Python prints no integer of more than 4300 digits
        return "a huge number"
    return text if len(text) <= 80 else text[:77] + "..."
