"""The file of a sweep: which params are varied, and within what.

trials: 20
params:
  max_lr: {low: 1.0e-4, high: 1.0e-2, log: true}
  epochs: {low: 1, high: 4}
  batch_size: [16, 32]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simple_llama.errors import InputError
from simple_llama.params.reading import Params
from simple_llama.strict_yaml import check_type, did_you_mean, read_mapping, shown

if TYPE_CHECKING:
    import optuna

Value = bool | int | float | str
MAX_TRIALS = 100_000


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: Sequence[Value]

    def draw(self, trial: "optuna.Trial", name: str) -> Value:
        return trial.suggest_categorical(name, list(self.values))  # type: ignore[return-value]


@dataclass(frozen=True)
class Interval:
    """A number from low to high, both included; an integer where both are integers."""

    low: float
    high: float
    log: bool
    """Whether the logarithm is uniform, not the number."""

    def draw(self, trial: "optuna.Trial", name: str) -> Value:
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


@dataclass(frozen=True, kw_only=True)
class Ranges:
    trials: int
    """How many trials are run to their end; pruned ones count."""
    params: dict[str, Choice | Interval]

    @classmethod
    def read(cls, path: Path, params: Params) -> "Ranges":
        """Read a sweep's file. Raises InputError where it names an unknown param or a bad range."""
        found = read_mapping(path)
        known: dict[str, Any] = dict.fromkeys(("trials", "params"))
        for key in found:
            if key not in known:
                raise InputError(
                    f"{path}: unknown key {shown(key)}{did_you_mean(key, known)}, wanted trials "
                    "and params"
                )
        trials = check_type(f"{path}: trials", found.get("trials"), int)
        if not 1 <= trials <= MAX_TRIALS:
            raise InputError(f"{path}: trials: got {trials}, wanted 1 to {MAX_TRIALS:,}")
        ranges = found.get("params")
        if not isinstance(ranges, dict) or not ranges:
            raise InputError(f"{path}: params: got {shown(ranges)}, wanted a range for each param")
        for name in ranges:
            if name not in params.values:
                hint = did_you_mean(name, params.values)
                raise InputError(f"{path}: params: {shown(name)} is none of params.yaml{hint}")
        return cls(
            trials=trials,
            params={
                name: _range(f"{path}: {name}", given, params.types[name])
                for name, given in ranges.items()
            },
        )


def _range(where: str, given: Any, wanted: Any) -> Choice | Interval:
    """wanted: the param's type, which all values of the range must have."""
    if isinstance(given, list):
        if not given:
            raise InputError(f"{where}: an empty list, wanted values")
        return Choice([check_type(where, value, wanted) for value in given])
    if not isinstance(given, dict) or not {"low", "high"} <= given.keys() <= {"low", "high", "log"}:
        raise InputError(
            f"{where}: got {shown(given)}, wanted a list of values, or {{low: ..., high: ...}} "
            "with log: true where it is to be drawn by its logarithm"
        )
    low, high = (check_type(f"{where}: {end}", given[end], wanted) for end in ("low", "high"))
    if any(isinstance(end, bool | str) for end in (low, high)):
        raise InputError(f"{where}: an interval of what is no number, wanted a list")
    log = check_type(f"{where}: log", given.get("log", False), bool)
    if low >= high or (log and low <= 0):
        raise InputError(
            f"{where}: got {low} to {high}, wanted low below high, and above 0 with log: true"
        )
    return Interval(low, high, log)
