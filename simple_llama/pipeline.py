"""What dvc.yaml says of the stages: their params, what they read, what they write."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from simple_llama.errors import InputError
from simple_llama.files import digest_tree
from simple_llama.stage_code import listing
from simple_llama.strict_yaml import read_mapping

PIPELINES = ("dvc.yaml", "models/demo/dvc.yaml")
"""Their paths are those of the project's root."""
CODE = Path("data/code")
"""An out of the stage `code`: a file for each stage."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    params: list[str]
    deps: list[str]
    """As they stand there: `${model_path}` is the param's value."""
    outs: list[Path]
    """Metrics and plots are outs too."""


def read_stages(file: str = PIPELINES[0]) -> dict[str, Stage]:
    """The stages of a file of the project in the current folder. Raises InputError."""
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
    """Where a dep lies, by the values of params.yaml."""
    return Path(values[dep[2:-1]] if dep.startswith("${") else dep)


def dep_digest(dep: str, values: Mapping[str, Any]) -> str:
    """SHA-256 of what a dep holds, in hexadecimal: code as it is now, whenever `code` last ran.

    Raises InputError, or OSError where it is missing.
    """
    path = dep_path(dep, values)
    if path.parent == CODE:
        return sha256(listing(path.stem).encode()).hexdigest()
    return digest_tree(path)


def check_outside_outs(path: str | Path) -> None:
    """Raises InputError where a path is an out of the pipeline, lies in one or holds one: DVC
    deletes the outs of a stage before it runs it."""
    target = Path(path).resolve()
    for file in filter(lambda name: Path(name).exists(), PIPELINES):
        for out in [out for stage in read_stages(file).values() for out in stage.outs]:
            place = out.resolve()
            if target.is_relative_to(place) or place.is_relative_to(target):
                raise InputError(
                    f"{path}: {out} is written and deleted by DVC, wanted a path outside of it"
                )
