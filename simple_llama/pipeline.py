"""Reads dvc.yaml: the params, dependencies and outs of each stage."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from simple_llama.errors import InputError
from simple_llama.files import digest_tree
from simple_llama.stage_code import LISTINGS, list_code
from simple_llama.strict_yaml import read_mapping

PIPELINE_FILES = ("dvc.yaml", "models/demo/dvc.yaml")
"""The pipelines of the project. All their paths are relative to the project's root."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    params: list[str]
    deps: list[str]
    """As written in dvc.yaml: `${model_path}` stands for the param's value."""
    outs: list[Path]
    """Including metrics and plots."""


def read_stages(file: str = PIPELINE_FILES[0]) -> dict[str, Stage]:
    """The stages of a dvc.yaml, by name. Raises InputError."""
    return {
        name: Stage(
            params=[param for param in stage.get("params", []) if isinstance(param, str)],
            deps=stage.get("deps", []),
            outs=[
                Path(out if isinstance(out, str) else next(iter(out)))
                for kind in ("outs", "metrics", "plots")
                for out in stage.get(kind, [])
            ],
        )
        for name, stage in (read_mapping(file).get("stages") or {}).items()
    }


def dep_path(dep: str, values: Mapping[str, Any]) -> Path:
    """The path of a dependency. values: of params.yaml."""
    return Path(values[dep[2:-1]] if dep.startswith("${") else dep)


def dep_digest(dep: str, values: Mapping[str, Any]) -> str:
    """SHA-256 of a dependency's content, in hexadecimal. For code, the content is computed now: the
    out of the stage `code` may be old.

    Raises InputError, or OSError where the dependency is missing.
    """
    path = dep_path(dep, values)
    if path.parent == LISTINGS:
        return sha256(list_code(path.stem).encode()).hexdigest()
    return digest_tree(path)


def check_outside_outs(path: str | Path) -> None:
    """Raises InputError where a path is an out of the pipeline, is inside one or contains one. DVC
    deletes the outs of a stage before running it, so a file written there would be lost."""
    target = Path(path).resolve()
    for file in filter(lambda name: Path(name).exists(), PIPELINE_FILES):
        for out in [out for stage in read_stages(file).values() for out in stage.outs]:
            place = out.resolve()
            if target.is_relative_to(place) or place.is_relative_to(target):
                raise InputError(
                    f"{path}: {out} is written and deleted by DVC, wanted a path outside of it"
                )
