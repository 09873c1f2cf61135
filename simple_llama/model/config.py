"""The shape of a model."""

from dataclasses import dataclass

from simple_llama.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a model, under the names of Hugging Face's LlamaConfig."""

    vocab_size: int
    hidden_size: int
    """Width D of the residual stream."""
    intermediate_size: int
    """Width inside the MLP."""
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    """Longest sequence seen in pretraining, in tokens."""
    rms_norm_eps: float
    rope_theta: float
    """Base of the rotary frequencies."""
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool

    def __post_init__(self) -> None:
        sizes = {
            name: getattr(self, name)
            for name in self.__dataclass_fields__
            if self.__dataclass_fields__[name].type is int
        }
        for name, size in sizes.items():
            if type(size) is not int or not 1 <= size < 2**31:
                raise InputError(f"{name}: got {size!r}, wanted a positive integer")
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < float("inf"):
                raise InputError(f"{name}: got {value!r}, wanted a positive number")
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"num_key_value_heads: got {self.num_key_value_heads}, "
                f"wanted a divisor of num_attention_heads ({self.num_attention_heads})"
            )
        if self.head_dim % 2:
            raise InputError(f"head_dim: got {self.head_dim}, wanted an even number")
