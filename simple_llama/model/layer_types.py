"""The keys of a config.json that say of each layer whether it has a sliding window."""

from collections.abc import Callable, Mapping
from typing import Any

from simple_llama.errors import InputError
from simple_llama.model.checks import ConfigDict, required_key
from simple_llama.model.config import ModelConfig

MAX_LAYERS = 10_000
LAYER_TYPES = {"sliding_attention": True, "full_attention": False}
LAYER_TYPE = {slides: name for name, slides in LAYER_TYPES.items()}


def layer_flags(found: ConfigDict, key: str, kinds: Mapping[Any, bool]) -> tuple[bool, ...] | None:
    """A flag for each layer, from a list of at least as many kinds; None where the key is left out.

    Raises InputError.
    """
    layers, listed = layer_count(found), found.get(key)
    if listed is None:
        return None
    if not isinstance(listed, list) or len(listed) < layers:
        raise InputError(f"{key}: got {listed!r:.80}, wanted a list of {layers}, one a layer")
    for kind in listed:
        if not isinstance(kind, str | int) or kind not in kinds:
            wanted = " or ".join(repr(value) for value in kinds)
            raise InputError(f"{key}: {kind!r:.80} is not supported, wanted {wanted}")
    return tuple(kinds[kind] for kind in listed[:layers])


def layer_count(found: ConfigDict) -> int:
    """num_hidden_layers, checked before a list of that length is made."""
    layers = required_key(found, "num_hidden_layers")
    if type(layers) is not int or not 1 <= layers <= MAX_LAYERS:
        raise InputError(
            f"num_hidden_layers: got {layers!r:.80}, wanted a positive integer up to {MAX_LAYERS}"
        )
    return layers


def read_windows(found: ConfigDict, sliding: Callable[[int], bool]) -> dict[str, Any]:
    """sliding_window and sliding_layers, by layer_types; where that is left out, by `sliding`."""
    window = found.get("sliding_window", 4096) if found.get("use_sliding_window") else None
    flags = layer_flags(found, "layer_types", LAYER_TYPES)
    if window is None:
        if flags is not None and any(flags):
            raise InputError("layer_types: got 'sliding_attention', wanted a sliding_window")
        return {}
    flags = flags or tuple(sliding(layer) for layer in range(layer_count(found)))
    return {"sliding_window": window, "sliding_layers": flags} if any(flags) else {}


def read_qwen_windows(found: ConfigDict) -> dict[str, Any]:
    """The same in Qwen's configs, where layers from max_window_layers on have a window."""
    first = found["max_window_layers"]
    if type(first) is not int:
        raise InputError(f"max_window_layers: got {first!r:.80}, wanted an integer")
    return read_windows(found, lambda layer: layer >= first)


def write_windows(config: ModelConfig) -> dict[str, Any]:
    """The keys that read_qwen_windows reads."""
    if config.sliding_window is None:
        return {"use_sliding_window": False}
    slides = [config.window(layer) is not None for layer in range(config.num_hidden_layers)]
    return {
        "use_sliding_window": True,
        "sliding_window": config.sliding_window,
        "max_window_layers": slides.index(True),  # what is read where layer_types is not known
        "layer_types": [LAYER_TYPE[flag] for flag in slides],
    }
