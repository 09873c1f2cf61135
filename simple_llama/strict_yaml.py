"""Reads flat YAML files of users safely: plain data only, as DVC reads it, with types checked."""

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
"""Longest file that is read: ruamel.yaml is slow, and files of params are short."""
MAX_INTEGER = 10**12
"""Largest integer that is allowed. Sensible counts are far below it, and it fits into the 64-bit
integers of libraries."""
MAX_DIGITS = 4300
"""Python reads no longer integer."""


class _Composer(Composer):
    """Refuses aliases, because a few lines of them can expand to billions of values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.parser.check_event(AliasEvent):
            mark = self.parser.peek_event().start_mark
            raise ComposerError(None, None, "an alias (*) is not read here", mark)
        return super().compose_node(parent, index)


class _Constructor(SafeConstructor):
    """Refuses repeated keys, and merges (<<), which silently override keys."""

    def construct_yaml_int(self, node: Any) -> Any:
        digits = sum(map(str.isdigit, node.value))
        if digits > MAX_DIGITS:
            problem = f"an integer of {digits:,} digits, wanted at most {MAX_INTEGER:,}"
            raise ConstructorError(None, None, problem, node.start_mark)
        return super().construct_yaml_int(node)

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


_Constructor.add_constructor("tag:yaml.org,2002:int", _Constructor.construct_yaml_int)


def read_mapping(path: str | Path) -> dict[Any, Any]:
    """The mapping in a YAML file. Raises InputError where it is not valid or not a mapping."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, wanted keys and values in YAML") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{path}: over {MAX_CHARACTERS} characters, wanted a few lines")
    try:
        yaml = YAML(typ="safe", pure=True)  # as DVC's, YAML 1.2
        yaml.Composer, yaml.Constructor = _Composer, _Constructor
        values = yaml.load(text)
    except Exception as error:  # constructors of ruamel.yaml may raise anything: KeyError, ...
        raise InputError(f"{path}: not valid YAML: {_problem(error)}") from None
    if not isinstance(values, dict):
        found = "empty" if values is None else f"got {shown(values)}"
        raise InputError(f"{path}: {found}, wanted lines of 'key: value'")
    return values


def _problem(error: Exception) -> str:
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    if mark is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}: {error.problem}"  # type: ignore[attr-defined]


def check_type(where: str, value: object, wanted: Any) -> Any:
    """The value, if it has the type `wanted`; otherwise raises InputError. Only an integer is
    converted, where a float is wanted. where: the file and key, for the message.
    """
    if get_origin(wanted) in (Union, UnionType):
        for one in get_args(wanted):
            with contextlib.suppress(InputError):
                return check_type(where, value, one)
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


def require(holds: bool, key: str, got: object, wanted: str) -> None:
    """Raises InputError where a value is not what is wanted."""
    if not holds:
        raise InputError(f"{key}: got {shown(got)}, wanted {wanted}")


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
    """A value as YAML would write it, shortened to 80 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = repr(value)
    except ValueError:  # Python does not print integers of more than 4300 digits
        return "a huge number"
    return text if len(text) <= 80 else text[:77] + "..."
