"""config.json of Hugging Face's layout: what this decoder computes is read, all else is refused by
name; what is written is read by `transformers` as the model_type that was read."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from simple_llama.errors import InputError
from simple_llama.files import read_json
from simple_llama.model.checks import required_key
from simple_llama.model.config import ModelConfig
from simple_llama.model.families import FAMILIES, SHARED, Family
from simple_llama.model.layer_types import LAYER_TYPE, LAYER_TYPES
from simple_llama.model.rope_scaling import ROPE_TYPES, read_scaling

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
        return _model_config(found)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _model_config(config: dict[str, Any]) -> ModelConfig:
    family = FAMILIES[config["model_type"]]
    found = {**family.absent, **config}
    heads, width = required_key(found, "num_attention_heads"), required_key(found, "hidden_size")
    if type(heads) is not int or type(width) is not int or min(heads, width) < 1:
        raise InputError("num_attention_heads and hidden_size must be positive integers")
    rope = _rope(found, family)
    positions = required_key(found, "max_position_embeddings")
    shared = {
        "vocab_size": required_key(found, "vocab_size"),
        "hidden_size": width,
        "intermediate_size": required_key(found, "intermediate_size"),
        "num_hidden_layers": required_key(found, "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": found.get("num_key_value_heads") or heads,
        "head_dim": found.get("head_dim") or width // heads,
        "max_position_embeddings": positions,
        "rms_norm_eps": found.get("rms_norm_eps", 1e-6),
        "rope_theta": rope.get("rope_theta", 10000.0),
        "rope_scaling": read_scaling(family.rope_types.get(_rope_type(rope)), rope, found),
        "partial_rotary_factor": rope.get("partial_rotary_factor", 1.0),
        "tie_word_embeddings": found.get("tie_word_embeddings") or False,
    }
    own = {key: found[key] for key in family.keys if found.get(key) is not None}
    return ModelConfig(
        model_type=config["model_type"], **shared, **family.fixed, **own, **family.read(found)
    )


def _rope(found: dict[str, Any], family: Family) -> dict[str, Any]:
    """Rotary settings from any place: transformers 5 nests them in rope_parameters, in some
    families by kind of layer; before, the base was flat and rope_scaling held the rest. The order
    is that of transformers."""
    scaling, nested = ((found.get(key) or {}) for key in ("rope_scaling", "rope_parameters"))
    for key, value in (("rope_scaling", scaling), ("rope_parameters", nested)):
        if not isinstance(value, dict):
            raise InputError(f"{key}: got {value!r:.80}, wanted an object")
    for key, value in nested.items():
        by_layer = isinstance(value, dict)
        if by_layer != family.local_rope or (by_layer and key not in LAYER_TYPES):
            raise InputError(f"rope_parameters: {key!r:.80} is not supported as {value!r:.80}")
    if family.local_rope:
        nested = {**nested.get("full_attention", {}), **scaling}
    else:
        nested = scaling or nested
    flat = {
        key: found[key]
        for key in ("rope_theta", "partial_rotary_factor")
        if found.get(key) is not None
    }
    return flat | nested


def _rope_type(rope: dict[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type", "default"))


def _refuse_unsupported(found: dict[str, Any]) -> None:
    for key in EXPERTS:
        if found.get(key):
            raise InputError(f"a mixture of experts ({key} {found[key]!r}) is not supported")
    if found.get("quantization_config") is not None:
        raise InputError("quantised weights (quantization_config) are not supported")
    if found.get("model_type") not in tuple(FAMILIES):
        raise _unsupported("model_type", found.get("model_type"), tuple(FAMILIES))
    family = FAMILIES[found["model_type"]]
    rope = _rope(found, family)
    part = rope.get("partial_rotary_factor")
    # where another key stands in its place, this one means nothing
    act = found.get("hidden_act") if "hidden_activation" in family.only else "silu"
    for key, got, supported in (
        ("hidden_act", found.get("hidden_act", act), (act,)),
        ("rope type", _rope_type(rope), tuple(family.rope_types)),
        ("partial_rotary_factor", part, (part,) if family.partial_rotary else (None, 1.0)),
        ("transformers_weights", found.get("transformers_weights"), (None,)),
    ):
        if got not in supported:
            raise _unsupported(key, got, supported)
    if not family.layer_types:
        _refuse_kinds(found, family)
    for key, value in family.only.items():
        if (got := found.get(key)) is not None and got != value:
            raise InputError(
                f"{key} {json.dumps(got)} is not supported, wanted {json.dumps(value)}"
            )


def _refuse_kinds(found: dict[str, Any], family: Family) -> None:
    """Layers of several kinds, or of another than the family's."""
    window = {**family.absent, **found}.get("sliding_window")
    slides = window is not None and "sliding_window" in family.keys
    kind, listed = LAYER_TYPE[slides], found.get("layer_types")
    if listed is not None and (not isinstance(listed, list) or set(map(str, listed)) != {kind}):
        raise InputError(f"layer_types {listed!r:.80} is not supported, wanted {kind} for all")


def _unsupported(key: str, got: Any, supported: Sequence[Any]) -> InputError:
    names = " or ".join(repr(value) for value in supported)
    return InputError(f"{key} {got!r} is not supported, wanted {names}")


def config_json(config: ModelConfig) -> dict[str, Any]:
    """What read_config and `transformers` read as this config."""
    family = FAMILIES[config.model_type]
    known = {"architectures": [family.architecture]} if family.architecture else {}
    written = {
        **known,
        "model_type": config.model_type,
        "hidden_act": config.hidden_act,
        **{name: getattr(config, name) for name in (*SHARED, *family.keys)},
        **family.written,
        **family.only,
        **family.write(config),
        **_rope_json(config),
    }
    assert _model_config(written) == config, f"{config.model_type} has no keys for {config}"
    return written


def _rope_json(config: ModelConfig) -> dict[str, Any]:
    """Flat and nested: readers before and since transformers 5 find it. rope_theta is in the
    shape already."""
    scaling, part, local = (
        config.rope_scaling,
        config.partial_rotary_factor,
        config.rope_local_theta,
    )
    settings: dict[str, Any] = {"rope_type": "default"}
    if scaling:
        settings = {"rope_type": ROPE_TYPES[type(scaling)], **asdict(scaling)}
    flat = {"partial_rotary_factor": part} if part != 1 else {}
    nested = {**settings, "rope_theta": config.rope_theta, **flat}
    if local is not None:
        flat["rope_local_base_freq"] = local
        own = {"rope_type": "default", "rope_theta": local}
        nested = {"full_attention": nested, "sliding_attention": own}
    return {
        **flat,
        **({"rope_scaling": settings} if scaling else {}),
        "rope_parameters": nested,
    }
