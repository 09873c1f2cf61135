"""The families of models, by Hugging Face's model_type: how the keys of a config.json become the
fields of a ModelConfig, and back. The decoder knows no family, only those fields."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from simple_llama.errors import InputError
from simple_llama.model.config import MLA, LatentShape, ModelConfig

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
Found = Mapping[str, Any]
"""What a config.json holds, and `absent` where it is silent."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model_type."""

    architecture: str | None = None
    """The class of `transformers`; None: it has none."""
    absent: Mapping[str, Any] = field(default_factory=dict)
    """What `transformers` takes for a key that config.json leaves out."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields that the model_type decides ..."""
    keys: tuple[str, ...] = ()
    """... and those that have a key of their name, left out or null where they are as ModelConfig
    has them by default."""
    only: Mapping[str, Any] = field(default_factory=dict)
    """Keys that must be so, or left out, for this decoder to compute it."""
    read: Callable[[Found], dict[str, Any]] = lambda found: {}
    """Fields that take more than a key of their name ..."""
    write: Callable[[ModelConfig], dict[str, Any]] = lambda config: {}
    """... and the keys of them."""


def wanted(found: Found, key: str) -> Any:
    """Raises InputError where it is missing."""
    if key not in found:
        raise InputError(f"missing {key!r}")
    return found[key]


def _latent(found: Found) -> dict[str, Any]:
    shape = {one.name: wanted(found, one.name) for one in fields(LatentShape)}
    return {"mla": LatentShape(**shape)}


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
        absent={"max_position_embeddings": 32768, "num_key_value_heads": 32},
        fixed={"attention_bias": True, "output_bias": False},
        only={"use_sliding_window": False},
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        absent={"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
        fixed={"qk_norm": "head"},
        keys=("attention_bias",),
        only={"use_sliding_window": False},
    ),
    MLA: Family(
        fixed={"attention_bias": True},
        read=_latent,
        write=lambda config: asdict(config.mla) if config.mla else {},
    ),
}
"""Those that load; MLA is our own, for what no other holds."""
