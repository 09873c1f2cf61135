"""A SimpleLLaMA checkpoint: `torch.save` of {"model_state_dict", "config": TrainingConfig, ...}.

Nothing in it is trusted. Its pickle may name tensors, their storages and that one config class,
which becomes an object without code; its lengths are held against the file's. The layout of its
weights is translated to that of Hugging Face:

- `qkv_linear` holds q, k and v head by head;
- RoPE turns neighbours (2i, 2i+1) of a head, here its halves: queries and keys are put in order;
- `ffwd.w1` is the gate, `w3` the up and `w2` the down projection.
"""

import io
import math
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simple_llama.errors import InputError
from simple_llama.files import describe_placeholder, read_head
from simple_llama.model.config import MLA, MLAConfig, ModelConfig
from simple_llama.model.weights import StoredTensor

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

FUSED = "attention.qkv_linear"
MODULE_NAMES = {
    "embeddings": "embed_tokens",
    "norm": "norm",
    "final_linear": "lm_head",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "ffwd.w1": "mlp.gate_proj",
    "ffwd.w2": "mlp.down_proj",
    "ffwd.w3": "mlp.up_proj",
    "attention.out": "self_attn.o_proj",
    "attention.wq": "self_attn.q_proj",
    "attention.wq_a": "self_attn.q_a_proj",
    "attention.q_norm": "self_attn.q_a_layernorm",
    "attention.wq_b": "self_attn.q_b_proj",
    "attention.wkv_a": "self_attn.kv_a_proj_with_mqa",
    "attention.kv_norm": "self_attn.kv_a_layernorm",
    "attention.wkv_b": "self_attn.kv_b_proj",
    "attention.wo": "self_attn.o_proj",
}
"""SimpleLLaMA's modules and ours."""


def read_pth(path: Path) -> tuple[ModelConfig, list[StoredTensor]]:
    """The config, and the tensors under this decoder's names.

    Raises InputError where the file is no such checkpoint, is damaged, or holds anything else.
    """
    if other := describe_placeholder(read_head(path)):
        raise InputError(f"{path}: {other}")
    try:
        with zipfile.ZipFile(path) as archive:
            state, settings = _Checkpoint(archive, path.stat().st_size).load()
        config = _model_config(settings, state)
        tensors = [
            part
            for name, entry in state.items()
            for part in _translated(path, name.removeprefix("_orig_mod."), entry, config)
        ]
    except InputError as error:
        raise InputError(f"{path}: {_short(error)}") from None
    except Exception as error:  # there is nothing that a pickle or a zip could not raise
        raise InputError(f"{path}: not a checkpoint of SimpleLLaMA: {_short(error)}") from None
    return config, tensors


def _short(error: Exception) -> str:
    """Its message, cut short: it may quote a name of any length."""
    return str(error)[:300]


class _Storage(NamedTuple):
    """An entry of the archive that holds numbers. This and _Entry are tuples: a pickle could change
    the attributes of other objects."""

    entry: str
    kind: str
    """One of STORAGES."""
    elements: int


class _Entry(NamedTuple):
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
    """Reads a checkpoint's pickle, each tensor as an _Entry that says where its bytes are.

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

    def load(self) -> tuple[dict[str, _Entry], dict[str, Any]]:
        """The state dict and the settings of the config."""
        found = super().load()
        config = found.get("config") if isinstance(found, dict) else None
        state = found.get("model_state_dict") if isinstance(found, dict) else None
        if type(config).__name__ != CONFIG_CLASS[1] or not isinstance(state, dict):
            raise InputError("wanted 'model_state_dict' and 'config', as SimpleLLaMA saves them")
        for name, entry in state.items():
            if not isinstance(name, str) or not isinstance(entry, _Entry) or not entry.nbytes:
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
) -> _Entry:
    """Called for torch._utils._rebuild_tensor_v2: an _Entry in place of its tensor."""
    if not isinstance(storage, _Storage):
        raise InputError("a tensor without a storage")
    entry, kind, elements = storage
    if not all(type(n) is int and n >= 0 for n in (offset, *shape)):
        raise InputError(f"entry {entry!r}: a tensor of shape {shape} from {offset} on")
    contiguous = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    if list(stride) != contiguous or offset + math.prod(shape) > elements:
        raise InputError(f"entry {entry!r}: a tensor that is not contiguous, or longer than it")
    name, dtype = STORAGES[kind]
    return _Entry(
        entry=entry,
        start=offset * dtype.itemsize,
        shape=tuple(shape),
        dtype=dtype,
        dtype_name=name,
    )


def _model_config(settings: dict[str, Any], state: dict[str, _Entry]) -> ModelConfig:
    """By its config, and the sizes of weights for what the config does not say."""

    def setting(name: str) -> Any:
        if name not in settings:
            raise InputError(f"config: missing {name!r}")
        return settings[name]

    def rows(suffix: str) -> int:
        found = [entry.shape[0] for name, entry in state.items() if name.endswith(suffix)]
        if not found:
            raise InputError(f"model_state_dict: no {suffix!r}")
        return found[0]

    width, heads = setting("n_embd"), setting("n_heads")
    if type(width) is not int or type(heads) is not int or heads < 1 or width % heads:
        raise InputError(f"config: n_embd {width!r} is not divided by n_heads {heads!r}")
    latent = None
    if setting("use_mla"):
        latent = MLAConfig(
            q_lora_rank=setting("q_lora_rank") or None,
            kv_lora_rank=setting("kv_lora_rank"),
            qk_nope_head_dim=setting("qk_nope_head_dim"),
            qk_rope_head_dim=setting("qk_rope_head_dim"),
            v_head_dim=setting("v_head_dim"),
        )
    return ModelConfig(
        model_type=MLA if latent else "llama",
        vocab_size=rows("embeddings.weight"),
        hidden_size=width,
        intermediate_size=rows("ffwd.w1.weight"),
        num_hidden_layers=setting("n_layers"),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=latent.qk_nope_head_dim + latent.qk_rope_head_dim if latent else width // heads,
        max_position_embeddings=setting("max_seq_len"),
        rms_norm_eps=setting("eps"),
        rope_theta=setting("theta"),
        tie_word_embeddings=False,
        attention_bias=latent is not None,
        mlp_bias=False,
        mla=latent,
    )


def _translated(
    path: Path, name: str, entry: _Entry, config: ModelConfig
) -> Iterator[StoredTensor]:
    """The parameters that a tensor of the checkpoint holds."""
    match = re.fullmatch(r"(?:decoder_blocks\.(\d{1,5})\.)?(.+)\.(weight|bias)", name)
    fused = match is not None and match[2] == FUSED and config.mla is None
    if match is None or not (fused or match[2] in MODULE_NAMES):
        raise InputError(f"tensor {name!r} has no place in a SimpleLLaMA model")
    layer, module, kind = match.groups()
    for place, rows in _parts(name, module, entry.shape, config):
        yield StoredTensor(
            name=name,
            parameter=f"layers.{layer}.{place}.{kind}" if layer else f"{place}.{kind}",
            shape=[entry.shape[0] if rows is None else len(rows), *entry.shape[1:]],
            dtype=entry.dtype_name,
            read=partial(_read, path, entry, rows),
        )


def _parts(
    name: str, module: str, shape: Sequence[int], config: ModelConfig
) -> list[tuple[str, Tensor | None]]:
    """Our modules that a module is cut into, with the rows each takes (None: all)."""
    heads, width, latent = config.num_attention_heads, config.head_dim, config.mla

    def rows(*cut: int) -> Tensor:
        if shape[0] != math.prod(cut):
            raise InputError(
                f"tensor {name!r} has shape {list(shape)}, wanted {math.prod(cut)} rows"
            )
        return torch.arange(shape[0]).view(cut)

    if module == FUSED:
        q, k, v = rows(heads, 3, width).unbind(1)
        parts = {"q_proj": _halves(q, width), "k_proj": _halves(k, width), "v_proj": v.flatten()}
        return [(f"self_attn.{part}", taken) for part, taken in parts.items()]
    if latent and module in ("attention.wq", "attention.wq_b"):
        return [(MODULE_NAMES[module], _halves(rows(heads, width), latent.qk_rope_head_dim))]
    if latent and module == "attention.wkv_a":
        rotated = latent.qk_rope_head_dim
        return [(MODULE_NAMES[module], _halves(rows(1, latent.kv_lora_rank + rotated), rotated))]
    return [(MODULE_NAMES[module], None)]


def _halves(rows: Tensor, rotated: int) -> Tensor:
    """Of each head's rows (H, K) the last, rotated ones: first of each pair, then second."""
    kept, pairs = rows.tensor_split((rows.shape[1] - rotated,), dim=1)
    return torch.cat((kept, pairs[:, ::2], pairs[:, 1::2]), dim=1).flatten()


def _read(path: Path, entry: _Entry, rows: Tensor | None) -> Tensor:
    """Raises InputError where its bytes are not those of the entry's checksum."""
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
    stored = torch.frombuffer(data, dtype=entry.dtype).view(entry.shape)
    return stored if rows is None else stored[rows]
