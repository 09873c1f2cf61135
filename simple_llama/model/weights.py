"""Tensors as they are stored in safetensors files: listed by their headers, read one at a time.

Weights are never unpickled here, a header's lengths are checked by safetensors, and no name in an
index may lead out of the folder.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from simple_llama.errors import InputError
from simple_llama.files import read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DTYPES = ("F64", "F32", "F16", "BF16")
QUANTISED = (".qweight", ".qzeros", ".scales", ".g_idx", ".weight_scale", ".absmax", ".quant_map")
"""How the tensors of GPTQ, AWQ, FP8 and bitsandbytes end, which stand beside or for a weight."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor on disk, to become one parameter."""

    name: str
    """What its file calls it."""
    parameter: str
    """Of the decoder."""
    shape: list[int]
    dtype: str
    """As safetensors writes it: F32, BF16, ..."""
    read: Callable[[], Tensor]


def weight_files(path: str | Path) -> list[Path]:
    """The files that hold a model's weights: a folder's safetensors file, the shards its index
    names, or a SimpleLLaMA .pth itself.

    Raises InputError where there are none.
    """
    path = Path(path)
    if is_pth(path):
        return [path]
    if not path.is_dir():
        found = "not a folder" if path.exists() else "no such folder"
        raise InputError(
            f"{path}: {found}, wanted a model in Hugging Face's layout or a SimpleLLaMA .pth"
        )
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if not (path / INDEX).is_file():
        others = sorted(file.name for file in path.iterdir() if file.suffix in PICKLED)
        found = f" (found {others[0]}: pickled weights are not read)" if others else ""
        raise InputError(f"{path}: no weights, wanted {WEIGHTS} or {INDEX}{found}")
    return _shards(path)


def is_pth(path: Path) -> bool:
    """Whether this is a checkpoint of SimpleLLaMA's own, to judge by its name."""
    return path.suffix == ".pth" and path.is_file()


def _shards(folder: Path) -> list[Path]:
    index = read_json(folder / INDEX)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise InputError(f"{folder / INDEX}: no 'weight_map' from tensors to files")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        if name in ("", ".", "..") or Path(name).name != name:
            raise InputError(f"{folder / INDEX}: shard {name!r} is not a file name")
        if not (folder / name).is_file():
            raise InputError(f"{folder}: shard {name} is missing")
    return [folder / name for name in names]


def read_safetensors(files: Sequence[Path]) -> list[StoredTensor]:
    """What the files hold, by their headers."""
    found = []
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  (not a mapping)
                    header = file.get_slice(name)
                    found.append(
                        StoredTensor(
                            name=name,
                            parameter=name.removeprefix("model."),
                            shape=header.get_shape(),
                            dtype=header.get_dtype(),
                            read=partial(_read, path, name),
                        )
                    )
        except SafetensorError as error:
            raise InputError(f"{path}: not a valid safetensors file: {error}") from None
    return found


def _read(path: Path, name: str) -> Tensor:
    """Opened anew for each tensor: as long as a file is mapped, what was read of it stays in
    memory, in the end a second copy of all weights."""
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)  # type: ignore[no-any-return]
