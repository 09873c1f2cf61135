"""The shape of a model."""

from dataclasses import dataclass

from simple_llama.errors import InputError

MAX_ELEMENTS = 2**40
"""Of a matrix; a size in bytes that no 64 bits hold would be an error of PyTorch."""


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
            if type(value) not in (int, float) or not 0 < value < 1e30:
                raise InputError(f"{name}: got {value!r}, wanted a positive number")
        for name in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
            if type(getattr(self, name)) is not bool:
                raise InputError(f"{name}: got {getattr(self, name)!r}, wanted true or false")
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"num_key_value_heads: got {self.num_key_value_heads}, "
                f"wanted a divisor of num_attention_heads ({self.num_attention_heads})"
            )
        if self.head_dim % 2:
            raise InputError(f"head_dim: got {self.head_dim}, wanted an even number")
        attention = self.num_attention_heads * self.head_dim
        longest = max(self.vocab_size, self.intermediate_size, attention)
        if self.hidden_size * longest > MAX_ELEMENTS:
            raise InputError(
                f"hidden_size: got {self.hidden_size}, with a matrix of {longest} rows more than "
                f"any memory holds"
            )
