"""What DVC owns: it deletes the outs of a stage before it runs it."""

from pathlib import Path

from simple_llama.errors import InputError
from simple_llama.strict_yaml import read_mapping

PIPELINES = ("dvc.yaml", "models/demo/dvc.yaml")
"""Their paths are those of the project's root."""


def check_outside_outs(path: str | Path) -> None:
    """Raises InputError where a path is an out of the pipeline, lies in one or holds one."""
    target = Path(path).resolve()
    for out in _outs():
        place = out.resolve()
        if target.is_relative_to(place) or place.is_relative_to(target):
            raise InputError(
                f"{path}: {out} is written and deleted by DVC, wanted a path outside of it"
            )


def _outs() -> list[Path]:
    outs = []
    for name in PIPELINES:
        if Path(name).exists():
            for stage in (read_mapping(name).get("stages") or {}).values():
                for kind in ("outs", "metrics", "plots"):
                    for out in stage.get(kind, []):
                        outs.append(Path(out if isinstance(out, str) else next(iter(out))))
    return outs
