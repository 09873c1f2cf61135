"""The decoder-only transformer of LLaMA-style models.

Modules carry the names of Hugging Face's Llama layout, so that its weights are this state dict.
Shapes: B batch, T time, D width, V vocabulary; see attention.py for the heads.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from simple_llama.model.attention import Attention, KVCache
from simple_llama.model.blocks import Cached
from simple_llama.model.config import ModelConfig
from simple_llama.model.kernels import RMSNorm, dropout_add
from simple_llama.model.mla import LatentAttention
from simple_llama.model.packing import Packed
from simple_llama.model.rope import rotary_angles, rotary_frequencies

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}
NORMS: dict[str, tuple[str | None, str | None, str | None, str | None]] = {
    "before": ("input_layernorm", None, "post_attention_layernorm", None),
    "after": (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "both": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
}
"""By name in Hugging Face's layout: before and after attention, before and after the MLP."""


class MLP(nn.Module):
    """SwiGLU or GeGLU: down(act(gate(x)) * up(x)) (https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.act = ACTIVATIONS[config.hidden_act]
        self.fused = config.fused_projections
        if self.fused:
            self.gate_up_proj = nn.Linear(width, 2 * inner, bias=bias)
        else:
            self.gate_proj = nn.Linear(width, inner, bias=bias)
            self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(self.act(gate) * up)  # type: ignore[no-any-return]


def residual_norm(config: ModelConfig) -> RMSNorm:
    """A norm of the residual stream."""
    return RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_offset)


class DecoderLayer(nn.Module):
    """Attention, then the MLP, each added to the residual stream, with norms before or after."""

    def __init__(self, config: ModelConfig, layer: int, *, dropout: float, fused: bool) -> None:
        super().__init__()
        self.dropout = dropout
        self.multiplier = config.residual_multiplier
        self.norms = NORMS[config.norms]
        before, after, before_mlp, after_mlp = self.norms

        def add_norm(name: str | None) -> None:
            if name:
                self.add_module(name, residual_norm(config))

        # in the order in which they compute, which is that of the parameters
        add_norm(before)
        attention = LatentAttention if config.mla else Attention
        self.self_attn = attention(config, layer, fused=fused)
        add_norm(after)
        add_norm(before_mlp)
        self.mlp = MLP(config)
        add_norm(after_mlp)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: KVCache | None,
        mask: Cached | Packed | None,
    ) -> Tensor:
        before, after, before_mlp, after_mlp = self.norms
        attended = self.self_attn(self._normed(before, x), rotary, cache, mask)
        x = self._add(x, self._normed(after, attended))
        return self._add(x, self._normed(after_mlp, self.mlp(self._normed(before_mlp, x))))

    def _normed(self, name: str | None, x: Tensor) -> Tensor:
        return getattr(self, name)(x) if name else x

    def _add(self, x: Tensor, branch: Tensor) -> Tensor:
        if self.multiplier != 1:
            branch = branch * self.multiplier
        if self.training and self.dropout:
            return dropout_add(x, branch, self.dropout)
        return x + branch


class OutputProjection(nn.Linear):
    """Hidden states to logits, divided by logits_scaling and soft-capped."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, config.vocab_size, bias=False)
        self.divisor, self.softcap = config.logits_scaling, config.final_logit_softcapping

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        if self.divisor != 1:
            logits = logits / self.divisor
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


class Decoder(nn.Module):
    """Token ids to hidden states, and hidden states to logits.

    The two are apart because training needs logits at the supervised positions only, and
    generation at the last one.
    """

    frequencies: Tensor
    local_frequencies: Tensor | None
    """Those of layers with a window, where they differ."""

    def __init__(self, config: ModelConfig, *, dropout: float = 0.0, fused: bool = True) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_blocks = False
        """Keep only what enters each block for the backward pass, and compute it again there."""
        # nn.Embedding would draw one, which on the meta device imports PyTorch's compiler: seconds
        drawn = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, _weight=drawn)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, dropout=dropout, fused=fused)
            for layer in range(config.num_hidden_layers)
        )
        self.norm = residual_norm(config)
        self.register_buffer("frequencies", rotary_frequencies(config), persistent=False)
        local = rotary_frequencies(config, local=True) if config.rope_local_theta else None
        self.register_buffer("local_frequencies", local, persistent=False)
        self.lm_head = OutputProjection(config)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self, ids: Tensor, cache: KVCache | None = None, *, packed: Packed | None = None
    ) -> Tensor:
        """Hidden states (B, T, D) of ids (B, T); with a cache, ids continue what it holds; packed,
        the one row's examples are each computed as if alone."""
        T = ids.shape[1]
        mask: Cached | Packed | None = None
        if cache is not None:
            positions, mask = cache.positions(T), cache.mask(T)  # (B, T)
        elif packed is not None:
            positions, mask = packed.positions(T)[None], packed
        else:
            positions = torch.arange(T, device=ids.device)[None]  # (1, T)
        rotary = rotary_angles(positions, self.frequencies, self.config.rotary_factor)
        local = None
        if self.local_frequencies is not None:
            local = rotary_angles(positions, self.local_frequencies)
        x = self.embed_tokens(ids)
        if self.config.embedding_multiplier != 1:
            x = x * self.config.embedding_multiplier
        for number, layer in enumerate(self.layers):
            angles = rotary if local is None or not self.config.window(number) else local
            if self.checkpoint_blocks and torch.is_grad_enabled():
                # with the random state of the first time, so dropout is the same
                x = checkpoint(layer, x, angles, cache, mask, use_reentrant=False)
            else:
                x = layer(x, angles, cache, mask)
        if cache is not None:
            cache.advance(T)
        return self.norm(x)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 scores over the vocabulary, (..., V) of hidden (..., D)."""
        return self.lm_head(hidden).float()  # type: ignore[no-any-return]

    def init_weights(self, seed: int, std: float = 0.02) -> None:
        """Random weights for pretraining: normal(0, std), the residual branches' outputs
        scaled down by the root of their number (GPT-2, section 2.3 of its paper)."""
        generator = torch.Generator().manual_seed(seed)
        branches = 2 * self.config.num_hidden_layers
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 1:
                nn.init.constant_(parameter, 1 - self.config.norm_offset)
            else:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = std / branches**0.5 if residual else std
                nn.init.normal_(parameter, 0.0, scale, generator=generator)
