"""The curves of a training: what the reports, MLflow and the resume state hold of its steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from simple_llama.files import write_csv

COLUMNS = {
    "val": ("step", "loss", "timestamp"),
    "interval": ("step", "loss", "timestamp"),
    "train": ("step", "epoch", "loss", "lr", "grad_norm", "tokens_per_second", "timestamp"),
}
"""The columns of each curve; timestamp in milliseconds since 1970."""
_NOT_WRITTEN = ("tokens_per_second", "timestamp")


class Curves:
    """Rows of numbers by curve, in the order of steps."""

    def __init__(self, values: Mapping[str, Sequence[Sequence[float]]] | None = None) -> None:
        self.rows: dict[str, list[dict[str, float]]] = {
            name: [dict(zip(columns, row, strict=True)) for row in values[name]] if values else []
            for name, columns in COLUMNS.items()
        }

    def add(self, curve: str, **values: float) -> None:
        assert tuple(values) == COLUMNS[curve]
        self.rows[curve].append(values)

    @property
    def values(self) -> dict[str, list[list[float]]]:
        """Row by row, without the columns' names: as short as JSON can hold it."""
        return {name: [list(row.values()) for row in rows] for name, rows in self.rows.items()}

    def write(self, folder: Path) -> None:
        """Write CSV files, without the columns that differ when a training is repeated."""
        for name, columns in COLUMNS.items():
            kept = [column for column in columns if column not in _NOT_WRITTEN]
            write_csv(folder / f"{name}.csv", self.rows[name], kept)
