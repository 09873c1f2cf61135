"""config.json of Hugging Face's layout: what this decoder computes is read, all else is refused by
name; what is written is read by `transformers` as the model_type that was read."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from simple_llama.errors import InputError
from simple_llama.files import read_json
from simple_llama.model.config import (
    MLA,
    MODEL_TYPES,
    LatentShape,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
)

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
ABSENT: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32},
    "qwen3": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
    MLA: {},
}
"""What transformers takes for a key that config.json leaves out."""
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def read_config(path: Path) -> ModelConfig:
    """A config.json as a ModelConfig.

    Raises InputError naming what is wrong, or what this decoder does not compute: another
    architecture, a mixture of experts, other rotary positions, quantised weights.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: not a file")
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path}: got {type(found).__name__}, wanted an object")
    try:
        _refuse_unsupported(found)
        return _model_config(ABSENT[found["model_type"]] | found)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _model_config(found: dict[str, Any]) -> ModelConfig:
    model_type = found["model_type"]
    heads, width = _wanted(found, "num_attention_heads"), _wanted(found, "hidden_size")
    if type(heads) is not int or type(width) is not int or heads < 1:
        raise InputError("num_attention_heads and hidden_size must be positive integers")
    rope = _rope(found)
    positions = _wanted(found, "max_position_embeddings")
    return ModelConfig(
        model_type=model_type,
        vocab_size=_wanted(found, "vocab_size"),
        hidden_size=width,
        intermediate_size=_wanted(found, "intermediate_size"),
        num_hidden_layers=_wanted(found, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=found.get("num_key_value_heads") or heads,
        head_dim=found.get("head_dim") or width // heads,
        max_position_embeddings=positions,
        rms_norm_eps=found.get("rms_norm_eps", 1e-6),
        rope_theta=rope.get("rope_theta", 10000.0),
        rope_scaling=_rope_scaling(rope, positions),
        tie_word_embeddings=found.get("tie_word_embeddings") or False,
        attention_bias={"mistral": False, "qwen2": True, MLA: True}.get(
            model_type, found.get("attention_bias") or False
        ),
        mlp_bias=(found.get("mlp_bias") or False) if model_type == "llama" else False,
        sliding_window=found.get("sliding_window") if model_type == "mistral" else None,
        qk_norm=model_type == "qwen3",
        mla=_latent_shape(found) if model_type == MLA else None,
    )


def _latent_shape(found: dict[str, Any]) -> LatentShape:
    return LatentShape(**{field.name: _wanted(found, field.name) for field in fields(LatentShape)})


def _wanted(found: dict[str, Any], key: str) -> Any:
    if key not in found:
        raise InputError(f"missing {key!r}")
    return found[key]


def _rope(found: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings from any place: transformers 5 nests them in rope_parameters; before, the
    base was flat and rope_scaling held the rest. The order is that of transformers."""
    nested = found.get("rope_scaling") or found.get("rope_parameters") or {}
    if not isinstance(nested, dict):
        raise InputError(f"rope_parameters: got {nested!r}, wanted an object")
    flat = {
        key: found[key]
        for key in ("rope_theta", "partial_rotary_factor")
        if found.get(key) is not None
    }
    return flat | nested


def _rope_type(rope: dict[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type", "default"))


def _rope_scaling(rope: dict[str, Any], positions: Any) -> LinearScaling | Llama3Scaling | None:
    if _rope_type(rope) == "linear":
        return LinearScaling(factor=_wanted(rope, "factor"))
    if _rope_type(rope) == "llama3":
        return Llama3Scaling(
            factor=_wanted(rope, "factor"),
            low_freq_factor=_wanted(rope, "low_freq_factor"),
            high_freq_factor=_wanted(rope, "high_freq_factor"),
            original_max_position_embeddings=rope.get(
                "original_max_position_embeddings", positions
            ),
        )
    return None


def _refuse_unsupported(found: dict[str, Any]) -> None:
    for key in EXPERTS:
        if found.get(key):
            raise InputError(f"a mixture of experts ({key} {found[key]!r}) is not supported")
    if found.get("quantization_config") is not None:
        raise InputError("quantised weights (quantization_config) are not supported")
    rope = _rope(found)
    for key, got, supported in (
        ("model_type", found.get("model_type"), MODEL_TYPES),
        ("hidden_act", found.get("hidden_act", "silu"), ("silu",)),
        ("rope type", _rope_type(rope), ("default", "linear", "llama3")),
        ("partial_rotary_factor", rope.get("partial_rotary_factor"), (None, 1.0)),
        ("transformers_weights", found.get("transformers_weights"), (None,)),
    ):
        if got not in supported:
            wanted = " or ".join(repr(value) for value in supported)
            raise InputError(f"{key} {got!r} is not supported, wanted {wanted}")
    if found["model_type"] in ("qwen2", "qwen3") and found.get("use_sliding_window"):
        raise InputError("use_sliding_window is not supported, wanted false")


def config_json(config: ModelConfig) -> dict[str, Any]:
    """What read_config and `transformers` read as this config."""
    shape = asdict(config)
    model_type = shape.pop("model_type")
    for name in ("rope_scaling", "sliding_window", "qk_norm", "mla"):
        del shape[name]
    if model_type not in ("llama", "qwen3"):  # there the model_type decides
        del shape["attention_bias"]
    if model_type != "llama":
        del shape["mlp_bias"]
    known = {"architectures": [ARCHITECTURES[model_type]]} if model_type in ARCHITECTURES else {}
    return {
        **known,
        "model_type": model_type,
        "hidden_act": "silu",
        **shape,
        **_family(config),
        **_rope_json(config),
    }


def _family(config: ModelConfig) -> dict[str, Any]:
    """Keys that only one model_type has."""
    if config.mla:
        return asdict(config.mla)
    if config.model_type == "mistral":
        return {"sliding_window": config.sliding_window}
    return {"use_sliding_window": False} if config.model_type in ("qwen2", "qwen3") else {}


def _rope_json(config: ModelConfig) -> dict[str, Any]:
    """Flat and nested: readers before and since transformers 5 find it. rope_theta is in the
    shape already."""
    if config.rope_scaling is None:
        settings: dict[str, Any] = {"rope_type": "default"}
    else:
        kind = "linear" if isinstance(config.rope_scaling, LinearScaling) else "llama3"
        settings = {"rope_type": kind, **asdict(config.rope_scaling)}
    scaled = {"rope_scaling": settings} if config.rope_scaling else {}
    return {**scaled, "rope_parameters": {**settings, "rope_theta": config.rope_theta}}
