"""Token arrays of a split. The tokenize stage writes them; train and evaluate memory-map them.

ids     t t t t t t t t t t t t t      all examples concatenated: N tokens
mask    0 0 0 1 1 0 0 0 0 1 1 1 1      1: this token is a target of the loss
starts  0         5               13   example i is ids[starts[i] : starts[i + 1]]
rows    0         2                    its line in the split's .jsonl; line 1 was too long
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simple_llama.errors import InputError

DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("<u1"),
    "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "I64": np.dtype("<i8"),
}
FIELDS = {"starts": ("I64",), "rows": ("I64",), "ids": ("U8", "U16", "U32"), "mask": ("U8",)}
"""Array → allowed types, in the order of the file. The widest come first, so that all are
aligned."""
MAX_HEADER_BYTES = 2**20


class Tokens:
    """The E examples of a split as flat arrays; see the drawing above.

    ids (N,) uint8, uint16 or uint32; mask (N,) uint8; starts (E + 1,), rows and lengths (E,) int64.
    """

    def __init__(
        self,
        ids: NDArray[Any],
        mask: NDArray[np.uint8],
        starts: NDArray[np.int64],
        rows: NDArray[np.int64],
    ) -> None:
        self.ids, self.mask, self.starts, self.rows = ids, mask, starts, rows
        self.lengths: NDArray[np.int64] = np.diff(starts)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.rows)

    @classmethod
    def from_examples(
        cls,
        examples: Sequence[tuple[ArrayLike, ArrayLike]],
        rows: ArrayLike | None = None,
    ) -> "Tokens":
        """Make arrays of (ids, mask) pairs. rows: 0, 1, 2, ... by default."""
        ids = [np.asarray(example[0], np.uint32) for example in examples]
        mask = [np.asarray(example[1], np.uint8) for example in examples]
        return cls(
            np.concatenate([np.zeros(0, np.uint32), *ids]),
            np.concatenate([np.zeros(0, np.uint8), *mask]),
            np.cumsum([0, *map(len, ids)], dtype=np.int64),
            np.asarray(range(len(ids)) if rows is None else rows, np.int64),
        )

    @classmethod
    def read(cls, path: str | Path) -> "Tokens":
        """Memory-map a file. Raises InputError where tokenize did not write it or it is damaged."""
        fields = _map_fields(Path(path))
        ids, mask, starts, rows = (fields[name] for name in ("ids", "mask", "starts", "rows"))
        sound = (
            len(mask) == len(ids)
            and len(starts) == len(rows) + 1
            and starts[0] == 0
            and starts[-1] == len(ids)
            and bool(np.all(starts[1:] > starts[:-1]))
        )
        if not sound:
            raise InputError(f"{path}: its arrays do not fit together; run tokenize again")
        return cls(ids, mask, starts, rows)


def _map_fields(path: Path) -> dict[str, NDArray[Any]]:
    """Memory-map each array, after checking that it lies within the file."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            entries, data_begin = _read_header(path, file, size)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run `dvc repro tokenize` first") from None
    fields = {}
    for name, dtypes in FIELDS.items():
        dtype, shape, (begin, end) = _entry(path, entries.get(name))
        if dtype not in dtypes or end - begin != shape * DTYPES[dtype].itemsize:
            raise InputError(f"{path}: {name!r} is not an array as tokenize writes it")
        if not 0 <= begin <= end <= size - data_begin:
            raise InputError(f"{path}: {name!r} lies outside the file: a truncated file?")
        if shape == 0:
            raise InputError(f"{path}: {name!r} is empty")
        mapped = np.memmap(path, DTYPES[dtype], "r", offset=data_begin + begin, shape=(shape,))
        fields[name] = mapped.view(np.ndarray)
    return fields


def _read_header(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
        raise InputError(f"{path}: not a safetensors file of tokenize, or truncated")
    try:
        entries = json.loads(file.read(length))
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, dict):
        raise InputError(f"{path}: its safetensors header is not JSON")
    return entries, 8 + length


def _entry(path: Path, entry: Any) -> tuple[str, int, tuple[int, int]]:
    """(dtype, length, (begin, end)) of a header entry. Raises InputError if it has other fields."""
    match entry:
        case {"dtype": str(dtype), "shape": [int(length)], "data_offsets": [int(begin), int(end)]}:
            return dtype, length, (begin, end)
    raise InputError(f"{path}: not the arrays that tokenize writes")
