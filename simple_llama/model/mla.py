"""Multi-head latent attention (https://arxiv.org/abs/2405.04434): keys and values of all heads are
computed from one narrow vector per position, which alone is cached.

Module names are those of DeepSeek-V2 in Hugging Face's layout. Every projection has a bias, as in
SimpleLLaMA. Norms compute in float32, whatever autocast made of their input.
"""

import torch
from torch import Tensor, nn

from simple_llama.model.attention import KVCache, attend
from simple_llama.model.blocks import Cached
from simple_llama.model.config import ModelConfig
from simple_llama.model.packing import Packed
from simple_llama.model.rope import rotate


class LatentAttention(nn.Module):
    """Of each head's K query and key channels only the last R are rotated, and the rotated keys
    are the same for all heads.

        x ─▶ latent (L) ─norm─▶ kv_b_proj ─▶ keys without position (H, K-R), values (H, W)
          └▶ rotated key (R)

    L and W are the widths of the latent and of a head's values.
    """

    def __init__(self, config: ModelConfig, layer: int, *, fused: bool) -> None:
        super().__init__()
        assert config.mla is not None
        shape, heads, width = config.mla, config.num_attention_heads, config.hidden_size
        self.layer = layer
        self.fused = fused
        self.shape = shape
        self.heads = heads
        queries = heads * config.head_dim
        if shape.q_lora_rank is None:
            self.q_proj = nn.Linear(width, queries)
        else:
            self.q_a_proj = nn.Linear(width, shape.q_lora_rank)
            self.q_a_layernorm = nn.RMSNorm(shape.q_lora_rank, config.rms_norm_eps)
            self.q_b_proj = nn.Linear(shape.q_lora_rank, queries)
        self.kv_a_proj_with_mqa = nn.Linear(width, shape.kv_lora_rank + shape.qk_rope_head_dim)
        self.kv_a_layernorm = nn.RMSNorm(shape.kv_lora_rank, config.rms_norm_eps)
        self.kv_b_proj = nn.Linear(
            shape.kv_lora_rank, heads * (shape.qk_nope_head_dim + shape.v_head_dim)
        )
        self.o_proj = nn.Linear(heads * shape.v_head_dim, width)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        cache: KVCache | None,
        mask: Cached | Packed | None,
    ) -> Tensor:
        B, T, _ = x.shape
        nope, rank = self.shape.qk_nope_head_dim, self.shape.kv_lora_rank
        q = self._heads(self._queries(x))  # (B, H, T, K)
        q = torch.cat((q[..., :nope], rotate(q[..., nope:], *rotary)), dim=-1)
        compressed = self.kv_a_proj_with_mqa(x)[:, None]  # (B, 1, T, L+R)
        latent = self.kv_a_layernorm(compressed[..., :rank].float())
        rotated = rotate(compressed[..., rank:], *rotary)
        if cache is not None:
            latent, rotated = cache.append(self.layer, latent, rotated)
        expanded = self._heads(self.kv_b_proj(latent[:, 0]))  # (B, H, S, K-R+W)
        shared = rotated.expand(-1, self.heads, -1, -1)
        k = torch.cat((expanded[..., :nope], shared), dim=-1)  # (B, H, S, K)
        out = attend(q, k, expanded[..., nope:], mask, fused=self.fused)
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1))  # type: ignore[no-any-return]

    def _queries(self, x: Tensor) -> Tensor:
        if self.shape.q_lora_rank is None:
            return self.q_proj(x)  # type: ignore[no-any-return]
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x).float()))  # type: ignore[no-any-return]

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, H * N) to (B, H, T, N)."""
        B, T, _ = x.shape
        return x.view(B, T, self.heads, -1).transpose(1, 2)
