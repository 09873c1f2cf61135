"""What the numbers of a config must be."""

from collections.abc import Mapping
from typing import Any

from simple_llama.errors import InputError

ConfigDict = Mapping[str, Any]
"""What a config.json holds, or a part of it."""


def check_sizes(config: Any, *names: str) -> None:
    """Raises InputError where a field is no size."""
    for name in names:
        size = getattr(config, name)
        if type(size) is not int or not 1 <= size < 2**31:
            raise InputError(f"{name}: got {size!r}, wanted a positive integer")


def check_positive(config: Any, *names: str) -> None:
    """Raises InputError where a field is no positive number."""
    for name in names:
        value = getattr(config, name)
        if not is_positive(value):
            raise InputError(f"{name}: got {value!r}, wanted a positive number")


def is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e18


def required_key(found: ConfigDict, key: str) -> Any:
    """Raises InputError where the key is missing."""
    if key not in found:
        raise InputError(f"missing {key!r}")
    return found[key]


def positive_integer(found: ConfigDict, key: str) -> int:
    """Raises InputError where the value is no positive integer."""
    value = found[key]
    if type(value) is not int or not 1 <= value < 2**31:
        raise InputError(f"{key}: got {value!r:.80}, wanted a positive integer")
    return value


def positive(found: ConfigDict, key: str) -> float:
    """Raises InputError where the value is no positive number."""
    value = found[key]
    if not is_positive(value):
        raise InputError(f"{key}: got {value!r:.80}, wanted a positive number")
    return value  # type: ignore[no-any-return]
