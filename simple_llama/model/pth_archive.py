"""The archive that `torch.save` wrote for SimpleLLaMA, read without trusting anything in it.

Its pickle may name tensors, their storages and one config class, which becomes an object without
code; its lengths are held against the file's.
"""

import io
import math
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simple_llama.errors import InputError

CONFIG_CLASS = ("simple_llama.pretraining.config", "TrainingConfig")
MAX_PICKLE = 2**23
"""Bytes; it holds names and shapes, some 100 for each tensor."""
STORAGES = {
    "DoubleStorage": ("F64", torch.float64),
    "FloatStorage": ("F32", torch.float32),
    "HalfStorage": ("F16", torch.float16),
    "BFloat16Storage": ("BF16", torch.bfloat16),
    # no weights, but an optimizer's state or a random state may stand beside them
    "LongStorage": ("I64", torch.int64),
    "IntStorage": ("I32", torch.int32),
    "ByteStorage": ("U8", torch.uint8),
    "BoolStorage": ("BOOL", torch.bool),
}
CHUNK = 2**20
"""Bytes read at once."""


def read_archive(path: Path) -> tuple[dict[str, "Entry"], dict[str, Any]]:
    """The state dict and the settings of the config. No tensor is read.

    Raises InputError where the archive holds anything else, or any exception where it is damaged:
    there is nothing that a pickle or a zip could not raise.
    """
    with zipfile.ZipFile(path) as archive:
        return _Checkpoint(archive, path.stat().st_size).load()


class _Storage(NamedTuple):
    """An entry of the archive that holds numbers. This and Entry are tuples: a pickle could change
    the attributes of other objects."""

    entry: str
    kind: str
    """One of STORAGES."""
    elements: int


class Entry(NamedTuple):
    """A contiguous tensor in an entry of the archive."""

    entry: str
    start: int
    """In bytes."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    dtype_name: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class _Checkpoint(pickle.Unpickler):
    """Reads a checkpoint's pickle, each tensor as an Entry that says where its bytes are.

    Compressed entries are refused: they may grow without bound.
    """

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self.sizes = {info.filename: info.file_size for info in archive.infolist()}
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
                raise InputError(f"entry {info.filename!r} is compressed or longer than the file")
        pickles = [name for name in self.sizes if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1 or self.sizes[pickles[0]] > MAX_PICKLE:
            raise InputError(
                f"wanted what torch.save writes, a data.pkl of up to {MAX_PICKLE} bytes"
            )
        self.root = pickles[0].removesuffix("data.pkl")
        self.size = size
        order = self.root + "byteorder"
        if order in self.sizes and (self.sizes[order] > 6 or archive.read(order) != b"little"):
            raise InputError("its numbers are big-endian, wanted little-endian")
        data = archive.read(pickles[0])
        _check_memo(data)
        super().__init__(io.BytesIO(data))

    def load(self) -> tuple[dict[str, Entry], dict[str, Any]]:
        """The state dict and the settings of the config."""
        found = super().load()
        config = found.get("config") if isinstance(found, dict) else None
        state = found.get("model_state_dict") if isinstance(found, dict) else None
        if type(config).__name__ != CONFIG_CLASS[1] or not isinstance(state, dict):
            raise InputError("wanted 'model_state_dict' and 'config', as SimpleLLaMA saves them")
        for name, entry in state.items():
            if not isinstance(name, str) or not isinstance(entry, Entry) or not entry.nbytes:
                raise InputError(f"model_state_dict: {name!r} is not a tensor, or an empty one")
        if sum(entry.nbytes for entry in state.values()) > self.size:
            raise InputError("its tensors are larger than the file")
        return state, vars(config)

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return _rebuild
            case "torch", storage if storage in STORAGES:
                return storage
        if (module, name) == CONFIG_CLASS:
            return type(name, (), {})  # anew, because a pickle can set a class's attributes
        raise InputError(
            f"it pickles {module}.{name}, wanted tensors and SimpleLLaMA's TrainingConfig only"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage, whose entry has the length it says."""
        kind, storage, key, _location, count = pid
        entry = f"{self.root}data/{key}"
        if kind != "storage" or type(count) is not int:
            raise InputError(f"{pid!r} is not a storage")
        if self.sizes.get(entry) != count * STORAGES[storage][1].itemsize:
            raise InputError(f"entry {entry!r} does not have {count} elements of {storage}")
        return _Storage(entry, storage, count)


def _check_memo(data: bytes) -> None:
    """Refuse an opcode that writes to the unpickler's memo at an index beyond the pickle's length:
    the memo grows to the index, whatever its size."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(data):
            raise InputError(f"its pickle has a memo of {argument} places")


def _rebuild(
    storage: _Storage, offset: int, shape: Sequence[int], stride: Sequence[int], *_: Any
) -> Entry:
    """Called for torch._utils._rebuild_tensor_v2: an Entry in place of its tensor."""
    if not isinstance(storage, _Storage):
        raise InputError("a tensor without a storage")
    entry, kind, elements = storage
    if not all(type(n) is int and n >= 0 for n in (offset, *shape)):
        raise InputError(f"entry {entry!r}: a tensor of shape {shape} from {offset} on")
    contiguous = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    if list(stride) != contiguous or offset + math.prod(shape) > elements:
        raise InputError(f"entry {entry!r}: a tensor that is not contiguous, or longer than it")
    name, dtype = STORAGES[kind]
    return Entry(
        entry=entry,
        start=offset * dtype.itemsize,
        shape=tuple(shape),
        dtype=dtype,
        dtype_name=name,
    )


def read_entry(path: Path, entry: Entry) -> Tensor:
    """A tensor's values.

    Raises InputError where its bytes are not those of the archive's checksum.
    """
    data = bytearray(entry.nbytes)
    view = memoryview(data)
    try:
        with zipfile.ZipFile(path) as archive, archive.open(entry.entry) as file:
            file.seek(entry.start)
            for start in range(0, len(data), CHUNK):
                part = file.read(min(CHUNK, len(data) - start))
                view[start : start + len(part)] = part
    except (zipfile.BadZipFile, EOFError, RuntimeError) as error:  # the last: it is encrypted
        raise InputError(f"{path}: entry {entry.entry!r} is damaged: {error}") from None
    return torch.frombuffer(data, dtype=entry.dtype).view(entry.shape)
