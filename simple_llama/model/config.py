"""The shape of a model."""

from dataclasses import dataclass
from typing import Literal

from simple_llama.errors import InputError
from simple_llama.model.checks import check_positive, check_sizes
from simple_llama.model.rope_scaling import LongRoPE, RopeScaling, YaRN

MAX_ELEMENTS = 2**40
"""Of a matrix: where a size in bytes exceeds 64 bits, PyTorch raises an error of its own."""
MLA = "simple_llama_mla"
"""The model_type of latent attention with a bias in each projection: Hugging Face has none."""


@dataclass(frozen=True, kw_only=True)
class MLAConfig:
    """Widths of multi-head latent attention, under the names of DeepSeek-V2's config
    (https://arxiv.org/abs/2405.04434)."""

    q_lora_rank: int | None
    """Width that queries are compressed to; None: they are not."""
    kv_lora_rank: int
    """Width of the latent that keys and values are computed from."""
    qk_nope_head_dim: int
    """Width of a head's part that knows no position ..."""
    qk_rope_head_dim: int
    """... and of the part that is rotated, whose key all heads share."""
    v_head_dim: int

    def __post_init__(self) -> None:
        check_sizes(self, "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        if self.q_lora_rank is not None:
            check_sizes(self, "q_lora_rank")
        if self.qk_rope_head_dim % 2:
            raise InputError(
                f"qk_rope_head_dim: got {self.qk_rope_head_dim}, wanted an even number"
            )


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
    attention_bias: bool = False
    """On queries, keys and values."""
    o_proj_bias: bool | None = None
    """On attention's output; None: as attention_bias."""
    mlp_bias: bool = False
    model_type: str = "llama"
    """One of FAMILIES: what it is published as. Only the other fields decide what is computed."""
    rope_scaling: RopeScaling | None = None
    partial_rotary_factor: float = 1.0
    """The share of a head that is rotated."""
    sliding_window: int | None = None
    """Positions that a position sees, itself included; None: all before it."""
    sliding_layers: tuple[bool, ...] | None = None
    """The layers that have this window; None: all."""
    qk_norm: Literal["head", "width"] | None = None
    """Queries and keys are normed before they are rotated, each head alone or all together."""
    norms: Literal["before", "after", "both"] = "before"
    """Of a branch's input, its output, or both."""
    norm_offset: float = 0.0
    """What is added to the weights of norms before they multiply."""
    hidden_act: Literal["silu", "gelu_pytorch_tanh"] = "silu"
    """Of the MLP's gate."""
    rope_local_theta: float | None = None
    """Base of the rotary frequencies in layers with a window, which then have no rope_scaling;
    None: as in the other layers."""
    attn_logit_softcapping: float | None = None
    """Attention scores x become cap * tanh(x / cap)."""
    final_logit_softcapping: float | None = None
    """Logits x become cap * tanh(x / cap)."""
    rotary_layers: tuple[bool, ...] | None = None
    """The layers whose queries and keys are rotated; None: all."""
    embedding_multiplier: float = 1.0
    """What embeddings are multiplied by."""
    residual_multiplier: float = 1.0
    """What a branch is multiplied by before it is added to the residual stream."""
    attention_multiplier: float | None = None
    """What queries times keys are multiplied by; None: 1 / sqrt(head_dim)."""
    logits_scaling: float = 1.0
    """What logits are divided by."""
    fused_projections: bool = False
    """Queries, keys and values come from one matrix, and the MLP's gate and up from another."""
    mla: MLAConfig | None = None
    """Latent instead of grouped-query attention; head_dim is then that of queries and keys."""

    def __post_init__(self) -> None:
        check_sizes(
            self,
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        )
        if self.sliding_window is not None:
            check_sizes(self, "sliding_window")
        check_positive(
            self,
            "rms_norm_eps",
            "rope_theta",
            "embedding_multiplier",
            "residual_multiplier",
            "logits_scaling",
            "partial_rotary_factor",
        )
        for name in (
            "attention_multiplier",
            "rope_local_theta",
            "attn_logit_softcapping",
            "final_logit_softcapping",
        ):
            if getattr(self, name) is not None:
                check_positive(self, name)
        for name in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
            if type(getattr(self, name)) is not bool:
                raise InputError(f"{name}: got {getattr(self, name)!r}, wanted true or false")
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"num_key_value_heads: got {self.num_key_value_heads}, "
                f"wanted a divisor of num_attention_heads ({self.num_attention_heads})"
            )
        self._check_rotated()
        widths = [self.hidden_size]
        head = self.head_dim
        if self.mla:
            widths += [self.mla.kv_lora_rank + self.mla.qk_rope_head_dim, self.mla.q_lora_rank or 1]
            head = max(head, self.mla.qk_nope_head_dim + self.mla.v_head_dim)
        longest = max(self.vocab_size, self.intermediate_size, self.num_attention_heads * head)
        if max(widths) * longest > MAX_ELEMENTS:
            raise InputError(
                f"hidden_size: got {self.hidden_size}, with a matrix of {longest} rows more than "
                f"any memory holds"
            )
        for by_layer in (self.sliding_layers, self.rotary_layers):
            assert by_layer is None or len(by_layer) == self.num_hidden_layers
        if self.mla:
            assert self.num_key_value_heads == self.num_attention_heads
            assert self.head_dim == self.mla.qk_nope_head_dim + self.mla.qk_rope_head_dim

    def uses_rope(self, layer: int) -> bool:
        """Whether this layer rotates queries and keys."""
        return self.rotary_layers is None or self.rotary_layers[layer]

    def _check_rotated(self) -> None:
        if self.mla is None and self.head_dim % 2:
            raise InputError(f"head_dim: got {self.head_dim}, wanted an even number")
        rotated = self.rotary_dim
        if rotated % 2 or not 0 < rotated <= self.head_dim:
            raise InputError(
                f"partial_rotary_factor: got {self.partial_rotary_factor}, wanted an even number "
                f"of a head's {self.head_dim} channels"
            )
        if isinstance(self.rope_scaling, YaRN) and self.rope_theta <= 1:
            raise InputError(f"rope_theta: got {self.rope_theta}, wanted more than 1 with yarn")
        if isinstance(self.rope_scaling, LongRoPE):
            for name in ("short_factor", "long_factor"):
                if (count := len(getattr(self.rope_scaling, name))) != rotated // 2:
                    raise InputError(f"{name}: got {count} factors, wanted {rotated // 2}")

    def window(self, layer: int) -> int | None:
        """Positions that a position sees in this layer, itself included; None: all before it."""
        slides = self.sliding_layers is None or self.sliding_layers[layer]
        return self.sliding_window if slides else None

    @property
    def rotary_dim(self) -> int:
        """Width of the part of a head that is rotated."""
        if self.mla:
            return self.mla.qk_rope_head_dim
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def rotary_factor(self) -> float:
        """What cos and sin are multiplied by."""
        return getattr(self.rope_scaling, "attention_factor", 1.0)

    @property
    def max_length(self) -> int:
        """Longest sequence that generation makes, in tokens: what pretraining saw, and what is
        computed right."""
        return min(self.max_position_embeddings, self.max_supported_positions or 2**31)

    @property
    def max_supported_positions(self) -> int | None:
        """The longest sequence that is computed right, in tokens; None: any."""
        scaling = self.rope_scaling
        return scaling.original_max_position_embeddings if isinstance(scaling, LongRoPE) else None
