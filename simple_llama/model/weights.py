"""Tensors as they are stored in safetensors files: listed by their headers, read one at a time, and
what they may hold.

Weights are never unpickled here, a header's lengths are checked by safetensors, and no name in an
index may lead out of the folder.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from simple_llama.errors import InputError
from simple_llama.files import describe_placeholder, read_head, read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
"""Of a folder in PEFT's format. `transformers` takes any folder that has it for an adapter."""
MAX_HEADER = 100_000_000
"""Bytes of a header, by safetensors."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DTYPES = ("F64", "F32", "F16", "BF16")
QUANTISED = (".qweight", ".qzeros", ".scales", ".g_idx", ".weight_scale", ".absmax", ".quant_map")
"""Endings of the tensors that GPTQ, AWQ, FP8 and bitsandbytes keep beside or instead of a
weight."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor on disk, to become one parameter."""

    name: str
    """What its file calls it."""
    parameter: str
    """What the decoder calls it."""
    shape: list[int]
    dtype: str
    """As safetensors writes it: F32, BF16, ..."""
    read: Callable[[], Tensor]


def write_safetensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file, marked as PyTorch's, with the mode that the umask gives new files.

    Raises SafetensorError where it cannot be written, a full disk mostly.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(mode)  # safetensors lets only its owner read it


def weight_files(path: str | Path) -> list[Path]:
    """The files that hold a model's weights: a folder's safetensors file, the shards its index
    names, or a SimpleLLaMA .pth itself.

    Raises InputError where there are none, or those of an adapter alone.
    """
    path = Path(path)
    if is_pth(path):
        return [path]
    if not path.is_dir():
        found = "not a folder" if path.exists() else "no such folder"
        raise InputError(
            f"{path}: {found}, wanted a model in Hugging Face's layout or a SimpleLLaMA .pth"
        )
    if (path / ADAPTER_CONFIG).is_file():
        raise InputError(
            f"{path}: a PEFT adapter{_for_base(path)}, not a whole model: wanted its base, or the "
            "base with the adapter merged into it (models/sft of a run, merge_and_unload() of peft)"
        )
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if not (path / INDEX).is_file():
        others = sorted(file.name for file in path.iterdir() if file.suffix in PICKLED)
        found = f" (found {others[0]}: pickled weights are not read)" if others else ""
        raise InputError(f"{path}: no weights, wanted {WEIGHTS} or {INDEX}{found}")
    return _shards(path)


def lacks_weights(path: str | Path) -> bool:
    """Whether this is a folder with a config.json and nothing that could be weights: no
    safetensors, no adapter, no pickled file."""
    path = Path(path)
    return (path / "config.json").is_file() and not any(
        file.suffix in (".safetensors", *PICKLED) or file.name == ADAPTER_CONFIG
        for file in path.iterdir()
    )


def _for_base(folder: Path) -> str:
    config = read_json(folder / ADAPTER_CONFIG)
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    return f" for {base}" if isinstance(base, str) and base else ""


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
    """What the files hold, by their headers.

    Raises InputError where one is damaged or something else, or a tensor stands in two of them:
    `transformers` takes the last one then, other readers the one that the index names.
    """
    found: dict[str, StoredTensor] = {}
    places: dict[str, Path] = {}
    for path in files:
        for tensor in _listed(path):
            if tensor.name in found:
                raise InputError(
                    f"{path.parent}: tensor {tensor.name!r} stands in {places[tensor.name].name} "
                    f"and in {path.name}, wanted it in one"
                )
            found[tensor.name], places[tensor.name] = tensor, path
    return list(found.values())


def _listed(path: Path) -> list[StoredTensor]:
    if other := describe_placeholder(read_head(path)):
        raise InputError(f"{path}: {other}")
    try:
        with safe_open(path, framework="pt") as file:
            return [_stored(path, name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118  (not a mapping)
    except SafetensorError as error:
        raise InputError(
            f"{path}: not a valid safetensors file: {_truncation(path) or error}"
        ) from None


def _stored(path: Path, name: str, header: Any) -> StoredTensor:
    return StoredTensor(
        name=name,
        parameter=name if name.startswith("model.lm_head.") else name.removeprefix("model."),
        shape=header.get_shape(),
        dtype=header.get_dtype(),
        read=partial(_read, path, name),
    )


def _truncation(path: Path) -> str | None:
    """How much of it is missing by its own header, if that is what is wrong."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(min(length, MAX_HEADER, size))
    wanted = 8 + length
    try:
        if wanted <= size:
            wanted += max(entry["data_offsets"][1] for entry in _entries(text))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if not size < wanted or not text.startswith(b"{"):
        return None
    return f"truncated, {size:,} bytes of at least {wanted:,}"


def _entries(header: bytes) -> list[Any]:
    return [entry for name, entry in json.loads(header).items() if name != "__metadata__"]


def _read(path: Path, name: str) -> Tensor:
    """Opened anew for each tensor: as long as a file is mapped, what was read of it stays in
    memory, in the end a second copy of all weights."""
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)  # type: ignore[no-any-return]


def check_range(values: Tensor, dtype: torch.dtype, what: str) -> None:
    """Raises InputError, which says what, where a value is no number or has none in the dtype.

    Minimum and maximum are enough: where there is a NaN both are, and rounding keeps the order.
    """
    for extreme in values.aminmax():
        if not extreme.isfinite():
            raise InputError(f"{what} holds {extreme.item()}, wanted finite numbers")
        if not extreme.to(dtype).isfinite():
            name, most = str(dtype).removeprefix("torch."), torch.finfo(dtype).max
            raise InputError(
                f"{what} holds {extreme.item():g}, beyond the {most:g} of {name}: wanted a dtype "
                "that holds it"
            )


def in_bf16_if_exact(values: Tensor) -> Tensor:
    """In bfloat16 where that holds every value of the tensor, else in float32."""
    if values.dtype == torch.bfloat16:
        return values
    whole, half = values.float(), values.bfloat16()
    return half if torch.equal(half.float(), whole) else whole
