"""Reads params.yaml: a strict, flat YAML file, one frozen dataclass for each owner.

There are no defaults here: values live in params.yaml alone. Every reader checks the whole file,
because DVC accepts an unknown `-S +key=1` silently and then runs nothing that would notice.
"""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from simple_llama.errors import InputError
from simple_llama.params.pipeline import PIPELINE
from simple_llama.strict_yaml import check_type, did_you_mean, read_mapping, shown, type_name

Section = TypeVar("Section")


class Params:
    """A params file that has been checked whole.

    Raises InputError naming the key, what it got and what it wants.
    """

    def __init__(
        self, path: str | Path = "params.yaml", owners: tuple[type[Any], ...] = PIPELINE
    ) -> None:
        self.path, self.owners = path, owners
        self.values = read_mapping(path)
        types = self.types = {
            field.name: field.type for owner in owners for field in dataclasses.fields(owner)
        }
        """What each key's value must be."""
        for key in self.values:
            if key not in types:
                raise InputError(f"{path}: unknown key {shown(key)}{did_you_mean(key, types)}")
        for key, wanted in types.items():
            if key not in self.values:
                raise InputError(f"{path}: missing key {key!r}, wanted {type_name(wanted)}")
            self.values[key] = check_type(f"{path}: {key}", self.values[key], wanted)
        for owner in owners:
            self.section(owner)

    def section(self, owner: type[Section]) -> Section:
        """One owner's values."""
        names = [field.name for field in dataclasses.fields(owner)]  # type: ignore[arg-type]
        try:
            return owner(**{name: self.values[name] for name in names})
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None

    def without(self, *owners: type[Any]) -> dict[str, Any]:
        """The values without those that only these owners read."""
        others = (other for other in self.owners if other not in owners)
        names = {field.name for other in others for field in dataclasses.fields(other)}
        return {key: value for key, value in self.values.items() if key in names}
