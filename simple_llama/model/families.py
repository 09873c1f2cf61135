"""The families of models, by Hugging Face's model_type: how the keys of a config.json become the
fields of a ModelConfig, and back. The decoder knows no family, only those fields."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from simple_llama.errors import InputError
from simple_llama.model.checks import ConfigDict, positive_integer, required_key
from simple_llama.model.config import MLA, MLAConfig, ModelConfig
from simple_llama.model.layer_types import (
    LAYER_TYPE,
    LAYER_TYPES,
    layer_count,
    layer_flags,
    read_qwen_windows,
    read_windows,
    write_windows,
)

SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
)
"""Fields of ModelConfig that every config.json has under the same name, and rope_scaling."""
NO_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
"""Where these are left out, `transformers` takes those of the family's first model, which may be
beyond the vocabulary."""
QWEN = {"max_position_embeddings": 32768, "num_key_value_heads": 32, "max_window_layers": 28}
GEMMA = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
GEMMA_LAYER = {"norms": "both", "norm_offset": 1.0, "hidden_act": "gelu_pytorch_tanh"}
GEMMA_ONLY = {"hidden_activation": "gelu_pytorch_tanh", "use_bidirectional_attention": False}
MULTIPLIERS = (
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "logits_scaling",
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model_type."""

    architecture: str | None = None
    """The class of `transformers`; None: it has none."""
    absent: Mapping[str, Any] = field(default_factory=dict)
    """What `transformers` takes for a key that config.json leaves out."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields that the model_type decides."""
    keys: tuple[str, ...] = ()
    """Fields that have a key of the same name; left out or null, ModelConfig's default holds."""
    only: Mapping[str, Any] = field(default_factory=dict)
    """Keys that must have this value or be left out: this decoder computes nothing else."""
    written: Mapping[str, Any] = field(default_factory=dict)
    """Keys that are added to each config.json that is written."""
    rope_types: Mapping[str, str] = field(
        default_factory=lambda: {kind: kind for kind in ("default", "linear", "llama3", "yarn")}
    )
    """Its names for kinds of rotary positions, and ours."""
    partial_rotary: bool = False
    """Whether a part of each head may be rotated only."""
    layer_types: bool = False
    """Whether its layers may be of several kinds."""
    local_rope: bool = False
    """Whether layers with a window have rotary positions of their own."""
    read: Callable[[ConfigDict], dict[str, Any]] = lambda found: {}
    """Fields that are computed from keys."""
    write: Callable[[ModelConfig], dict[str, Any]] = lambda config: {}
    """The keys that `read` computes them from."""


def _smollm3(found: ConfigDict) -> dict[str, Any]:
    """Each layer but every n-th knows positions; that one may have a window."""
    flags = layer_flags(found, "no_rope_layers", {1: True, 0: False})
    if flags is None:
        every = positive_integer(found, "no_rope_layer_interval")
        flags = tuple(layer % every != 0 for layer in range(1, layer_count(found) + 1))
    rotary = flags
    windows = read_windows(found, lambda layer: not rotary[layer])
    return {"rotary_layers": None if all(rotary) else rotary, **windows}


def _gemma(found: ConfigDict, every: int = 2) -> dict[str, Any]:
    """Scaled embeddings and scores; each layer but every n-th has a window."""
    flags = layer_flags(found, "layer_types", LAYER_TYPES)
    return {
        "embedding_multiplier": found["hidden_size"] ** 0.5,
        "attention_multiplier": positive_integer(found, "query_pre_attn_scalar") ** -0.5,
        "sliding_window": positive_integer(found, "sliding_window"),
        "sliding_layers": flags or tuple(n % every != 0 for n in range(1, layer_count(found) + 1)),
    }


def _gemma3(found: ConfigDict) -> dict[str, Any]:
    """The layers with a window have rotary positions of their own."""
    own = (found.get("rope_parameters") or {}).get("sliding_attention") or {}
    if (kind := own.get("rope_type", "default")) != "default":
        raise InputError(f"rope type {kind!r:.80} of sliding_attention is not supported")
    return {
        "rope_local_theta": own.get("rope_theta", found["rope_local_base_freq"]),
        **_gemma(found, positive_integer(found, "sliding_window_pattern")),
    }


def _gemma_keys(config: ModelConfig) -> dict[str, Any]:
    assert config.attention_multiplier is not None
    slides = [config.window(layer) is not None for layer in range(config.num_hidden_layers)]
    return {
        "query_pre_attn_scalar": round(config.attention_multiplier**-2),
        # where no layer has one `transformers` wants a number all the same
        "sliding_window": config.sliding_window or GEMMA["sliding_window"],
        "layer_types": [LAYER_TYPE[flag] for flag in slides],
    }


def _latent(found: ConfigDict) -> dict[str, Any]:
    shape = {one.name: required_key(found, one.name) for one in fields(MLAConfig)}
    return {"mla": MLAConfig(**shape)}


FAMILIES = {
    "llama": Family(
        architecture="LlamaForCausalLM",
        absent={"max_position_embeddings": 2048},
        keys=("attention_bias", "mlp_bias"),
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        absent={
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
        },
        keys=("sliding_window",),
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        absent=QWEN,
        fixed={"attention_bias": True, "o_proj_bias": False},
        layer_types=True,
        read=read_qwen_windows,
        write=write_windows,
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        absent={**QWEN, "head_dim": 128},
        fixed={"qk_norm": "head"},
        keys=("attention_bias",),
        layer_types=True,
        read=read_qwen_windows,
        write=write_windows,
    ),
    "smollm3": Family(
        architecture="SmolLM3ForCausalLM",
        absent={
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "rope_theta": 2000000.0,
            "tie_word_embeddings": True,
            "no_rope_layer_interval": 4,
        },
        keys=("attention_bias", "mlp_bias"),
        written=NO_IDS,
        layer_types=True,
        read=_smollm3,
        write=lambda config: {
            "no_rope_layers": [int(config.uses_rope(n)) for n in range(config.num_hidden_layers)],
            **write_windows(config),
        },
    ),
    "granite": Family(
        architecture="GraniteForCausalLM",
        absent={"max_position_embeddings": 2048, "attention_multiplier": 1.0},
        keys=("attention_bias", "mlp_bias", *MULTIPLIERS),
        written=NO_IDS,
    ),
    "olmo2": Family(
        architecture="Olmo2ForCausalLM",
        absent={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
        fixed={"norms": "after", "qk_norm": "width"},
        keys=("attention_bias",),
        written=NO_IDS,
    ),
    "phi3": Family(
        architecture="Phi3ForCausalLM",
        absent={
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
        },
        fixed={"fused_projections": True},
        keys=("sliding_window",),
        written=NO_IDS,
        rope_types={
            "default": "default",
            "longrope": "longrope",
            "su": "longrope",  # its names before
            "yarn": "longrope",
        },
        partial_rotary=True,
        write=lambda config: (
            {"original_max_position_embeddings": config.max_supported_positions}
            if config.max_supported_positions
            else {}
        ),
    ),
    "gemma2": Family(
        architecture="Gemma2ForCausalLM",
        absent={
            **GEMMA,
            "max_position_embeddings": 8192,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        fixed=GEMMA_LAYER,
        keys=("attention_bias", "attn_logit_softcapping", "final_logit_softcapping"),
        only=GEMMA_ONLY,
        written=NO_IDS,
        layer_types=True,
        read=_gemma,
        write=_gemma_keys,
    ),
    "gemma3_text": Family(
        architecture="Gemma3ForCausalLM",
        absent={
            **GEMMA,
            "max_position_embeddings": 131072,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
            "sliding_window_pattern": 6,
        },
        fixed={**GEMMA_LAYER, "qk_norm": "head"},
        keys=("attention_bias", "final_logit_softcapping"),
        # its attention has no cap, whatever the config says
        only={**GEMMA_ONLY, "attn_logit_softcapping": None},
        written=NO_IDS,
        rope_types={"default": "default", "linear": "linear"},
        local_rope=True,
        layer_types=True,
        read=_gemma3,
        write=_gemma_keys,
    ),
    MLA: Family(
        fixed={"attention_bias": True},
        read=_latent,
        write=lambda config: asdict(config.mla) if config.mla else {},
    ),
}
"""Those that load; MLA is our own, for what no other holds."""
