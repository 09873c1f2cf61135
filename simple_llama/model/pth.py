"""A SimpleLLaMA checkpoint: `torch.save` of {"model_state_dict", "config": TrainingConfig, ...}.

The layout of its weights is translated to that of Hugging Face:

- `qkv_linear` holds q, k and v head by head;
- RoPE turns neighbours (2i, 2i+1) of a head, here its halves: queries and keys are put in order;
- `ffwd.w1` is the gate, `w3` the up and `w2` the down projection.
"""

import math
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simple_llama.errors import InputError
from simple_llama.files import describe_placeholder, read_head
from simple_llama.model.config import MLA, MLAConfig, ModelConfig
from simple_llama.model.pth_archive import Entry, read_archive, read_entry
from simple_llama.model.weights import StoredTensor

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
        state, settings = read_archive(path)
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


def _model_config(settings: dict[str, Any], state: dict[str, Entry]) -> ModelConfig:
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


def _translated(path: Path, name: str, entry: Entry, config: ModelConfig) -> Iterator[StoredTensor]:
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


def _read(path: Path, entry: Entry, rows: Tensor | None) -> Tensor:
    stored = read_entry(path, entry)
    return stored if rows is None else stored[rows]
