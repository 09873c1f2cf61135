"""Causal self-attention with rotary positions and grouped keys and values, and its cache.

Shapes, here and in its neighbours: B batch, T time, D width, H query heads, G key/value heads,
K head width, S cached positions.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from simple_llama.model import kernels, packing
from simple_llama.model.blocks import Cached, blockwise_attention
from simple_llama.model.config import ModelConfig
from simple_llama.model.kernels import RMSNorm
from simple_llama.model.packing import Packed
from simple_llama.model.recomputed import Formula, recomputed_attention
from simple_llama.model.rope import rotate


class KVCache:
    """Keys and values of the positions computed so far, for all layers; of latent attention what
    they are computed from.

    Prompts of one batch are padded on the left, so that all rows end at the same position;
    `padding` (B,) holds how many leading positions of a row are not real.
    """

    def __init__(self, padding: Tensor, capacity: int) -> None:
        self.keys: list[Tensor] = []  # by layer, (B, G, capacity, K)
        self.values: list[Tensor] = []  # and (B, G, capacity, their own width)
        self.padding = padding
        self.padded = bool(padding.any())
        self.capacity = capacity
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (B, G, T, K) behind the cached ones; return all, (B, G, S, K)."""
        end = self.length + k.shape[2]
        if end > self.capacity:
            self.reserve(max(end, 2 * self.capacity))
        if layer == len(self.keys):
            for stored, new in ((self.keys, k), (self.values, v)):
                stored.append(new.new_zeros((*new.shape[:2], self.capacity, new.shape[3])))
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def reserve(self, capacity: int) -> None:
        """Make room for so many positions."""
        if capacity <= self.capacity:
            return
        for stored in (self.keys, self.values):
            for layer, old in enumerate(stored):
                # zeros: what is not filled yet may be hidden, but must be numbers
                stored[layer] = old.new_zeros((*old.shape[:2], capacity, old.shape[3]))
                stored[layer][:, :, : self.length] = old[:, :, : self.length]
        self.capacity = capacity

    def positions(self, new: int) -> Tensor:
        """Of the `new` next tokens in their rows, (B, T)."""
        places = torch.arange(new, device=self.padding.device) + self.length
        return (places - self.padding[:, None]).clamp_min(0)

    def advance(self, new: int) -> None:
        """So many tokens have been appended in every layer."""
        self.length += new

    def mask(self, new: int) -> Cached | None:
        """What the `new` last of the S positions may see; None where causality alone decides."""
        if not self.padded and (new == 1 or self.length == 0):
            return None
        return Cached(self.padding if self.padded else None)

    def select_rows(self, rows: Tensor) -> None:
        """Drop all but these rows of the batch."""
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]
        self.padding = self.padding[rows]

    def crop(self, length: int) -> None:
        """Forget all but the first `length` positions."""
        self.length = min(self.length, length)


class Attention(nn.Module):
    """Multi-head attention whose G key/value heads each serve H / G query heads
    (https://arxiv.org/abs/2305.13245)."""

    def __init__(self, config: ModelConfig, layer: int, *, fused: bool) -> None:
        super().__init__()
        self.layer = layer
        self.fused = fused
        self.head_dim, self.rotary_dim = config.head_dim, config.rotary_dim
        width, bias = config.hidden_size, config.attention_bias
        queries, keys = config.num_attention_heads, config.num_key_value_heads
        self.widths = [heads * config.head_dim for heads in (queries, keys, keys)]
        self.fused_projections = config.fused_projections
        if config.fused_projections:
            self.qkv_proj = nn.Linear(width, sum(self.widths), bias=bias)
        else:
            self.q_proj, self.k_proj, self.v_proj = (
                nn.Linear(width, each, bias=bias) for each in self.widths
            )
        self.o_proj = nn.Linear(
            queries * config.head_dim,
            width,
            bias=bias if config.o_proj_bias is None else config.o_proj_bias,
        )
        self.scale, self.softcap = config.attention_multiplier, config.attn_logit_softcapping
        self.uses_rope, self.window = config.uses_rope(layer), config.window(layer)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            heads = {"head": (1, 1), "width": (queries, keys)}[config.qk_norm]
            self.q_norm, self.k_norm = (
                RMSNorm(count * config.head_dim, config.rms_norm_eps, config.norm_offset)
                for count in heads
            )

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: KVCache | None,
        mask: Cached | Packed | None,
    ) -> Tensor:
        B, T, _ = x.shape
        if self.fused_projections:
            q, k, v = torch.split(self.qkv_proj(x), self.widths, dim=-1)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.qk_norm == "width":
            q, k = self._normed(q, k)
        q = q.view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, H, T, K)
        k = k.view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, G, T, K)
        v = v.view(B, T, -1, self.head_dim).transpose(1, 2)
        if self.qk_norm == "head":
            q, k = self._normed(q, k)
        if self.uses_rope:
            q, k = self._rotated(q, rotary), self._rotated(k, rotary)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        out = attend(
            q,
            k,
            v,
            mask,
            fused=self.fused,
            window=self.window,
            scale=self.scale,
            softcap=self.softcap,
        )
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1))  # type: ignore[no-any-return]

    def _rotated(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        if self.rotary_dim == self.head_dim:
            return rotate(x, *rotary)
        turned, kept = x[..., : self.rotary_dim], x[..., self.rotary_dim :]
        return torch.cat((rotate(turned, *rotary), kept), dim=-1)

    def _normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Normed in float32, the type of the norms' weights, and cast back."""
        return self.q_norm(q.float()).to(q.dtype), self.k_norm(k.float()).to(k.dtype)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Cached | Packed | None,
    *,
    fused: bool,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """(B, H, T, K) of queries like it over keys and values (B, G, S, K), each shared by H / G
    query heads: softmax(scale q k^T) v, where scale is 1 / sqrt(K) unless given.

    Without a mask attention is causal, and the last query sees all S keys. Packed, queries see
    their own example only; with a window, of what they would see only the last `window` keys. A
    softcap bounds the scores: see recomputed.Formula.
    """
    how: Any = {"window": window, "scale": scale, "softcap": softcap}
    if isinstance(mask, Packed):
        return _attend_packed(q, k, v, mask, fused=fused, **how)
    B, H, T, K = q.shape
    S, share = k.shape[2], H // k.shape[1]
    if window is not None and window >= S:
        window = None  # it hides nothing
    plain = softcap is not None or not fused
    kernel = partial(kernels.attention, scale=scale)
    if plain:
        kernel = partial(plain_attention, scale=scale, softcap=softcap)
    if T == 1:
        low = 0 if window is None or (mask and mask.place is not None) else S - window
        seen = None if mask is None else mask.mask(1, low, S, q.device, window)
        q = q.view(B, -1, share, K)  # heads that share keys as queries of one head: no copies
        return kernel(q, k[:, :, low:], v[:, :, low:], attn_mask=seen).reshape(B, H, T, -1)
    if share > 1:
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    if window is None and mask is None and not plain:
        return kernel(q, k, v, is_causal=True)
    if torch.compiler.is_compiling() or (plain and mask is None and S == T > kernels.MAX_KEPT_KEYS):
        return recomputed_attention(q, k, v, **how)
    return blockwise_attention(q, k, v, mask, window, kernel, added=not plain)


def _attend_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Packed,
    *,
    fused: bool,
    window: int | None,
    scale: float | None,
    softcap: float | None,
) -> Tensor:
    if window is not None and window >= mask.longest:
        window = None
    if fused and softcap is None:
        if packing.uses_varlen_kernel(q, v):
            return packing.packed_attention(q, k, v, mask, window, scale)
        if window is None and kernels.uses_cpu_attention(q):
            return kernels.packed_attention(q, k, v, mask, scale)
    how: Any = {"window": window, "scale": scale, "softcap": softcap}
    if torch.compiler.is_compiling():
        return recomputed_attention(q, k, v, **how, offsets=mask.offsets)
    how |= {"mask": None, "fused": fused}
    examples = (tuple(x[:, :, span] for x in (q, k, v)) for span in mask.spans())
    return torch.cat([attend(q, k, v, **how) for q, k, v in examples], dim=2)


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """softmax(c) v of bounded scores c, written out: what the fused kernel must equal. The mask is
    bool; None: all see all."""
    weights, _ = Formula(scale=scale, softcap=softcap).weights(q, k, attn_mask)
    return weights.to(q.dtype) @ v
