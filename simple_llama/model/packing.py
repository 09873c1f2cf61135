"""Attention over examples that stand end to end in one row, without padding between them.

Shapes as in attention.py; N tokens in the row, E examples.
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from simple_llama.model.config import ModelConfig

MAX_HEAD_DIM = 256
HEAD_DIM_MULTIPLE = 8
"""What PyTorch's variable-length attention takes."""
HAS_ENABLE_GQA = [int(part) for part in torch.__version__.split(".")[:2]] >= [2, 12]
"""From PyTorch 2.12 on its variable-length attention has to be told of grouped queries."""


@dataclass(frozen=True)
class Packed:
    """Where the examples of a row begin and end.

    offsets 0 3 5:    x . . . .
                      x x . . .        (x seen, . hidden)
                      x x x . .
                      . . . x .
                      . . . x x
    """

    offsets: Tensor
    """(E + 1,) int32: where each example begins, padding counted as one, then N."""
    longest: int
    """Tokens of the longest example."""

    def positions(self, length: int) -> Tensor:
        """Of each of the `length` (N) tokens in its own example, (N,)."""
        places = torch.arange(length, device=self.offsets.device, dtype=torch.int32)
        return places - self.offsets[torch.bucketize(places, self.offsets[1:], right=True)]

    def spans(self) -> list[slice]:
        """The tokens of each example that has any."""
        return [slice(*ends) for ends in pairwise(self.offsets.tolist()) if ends[0] < ends[1]]


def kernel_width(config: ModelConfig) -> int:
    """Of a head, as `packed_attention` computes it: the narrower of keys and values is padded."""
    return max(config.head_dim, config.mla.v_head_dim if config.mla else 0)


def has_varlen_kernel(device: torch.device, width: int) -> bool:
    """Whether `packed_attention` computes heads of this width in bfloat16 there."""
    return (
        device.type == "cuda"
        and width <= MAX_HEAD_DIM
        and torch.cuda.get_device_properties(device).major >= 8  # torch.compile can trace this
    )


def uses_varlen_kernel(q: Tensor, v: Tensor) -> bool:
    """Whether `packed_attention` computes queries and values of this type, width and device."""
    half = q.dtype in (torch.bfloat16, torch.float16)
    return half and has_varlen_kernel(q.device, max(q.shape[-1], v.shape[-1]))


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packed: Packed,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale q k^T) v of each example alone, causal and within the window, without
    computing what is hidden: q (1, H, N, K), k (1, G, N, K) and v (1, G, N, W); (1, H, N, W)."""
    # the module imports PyTorch's compiler: seconds
    from torch.nn.attention.varlen import varlen_attn

    width = -(-max(q.shape[-1], v.shape[-1]) // HEAD_DIM_MULTIPLE) * HEAD_DIM_MULTIPLE

    def row(x: Tensor) -> Tensor:
        """(N, H or G, width)"""
        x = x[0].transpose(0, 1)
        if x.shape[-1] < width:  # to pad by nothing copies
            x = F.pad(x, (0, width - x.shape[-1]))
        return x.contiguous()

    attention: Any = varlen_attn
    if HAS_ENABLE_GQA and q.shape[1] != k.shape[1]:
        attention = partial(varlen_attn, enable_gqa=True)
    out = attention(
        row(q),
        row(k),
        row(v),
        packed.offsets,
        packed.offsets,
        packed.longest,
        packed.longest,
        scale=1 / math.sqrt(q.shape[-1]) if scale is None else scale,
        # so many before itself (-1: all), nothing after
        window_size=(-1 if window is None else window - 1, 0),
    )
    assert isinstance(out, Tensor)
    return out[..., : v.shape[-1]].transpose(0, 1)[None]
