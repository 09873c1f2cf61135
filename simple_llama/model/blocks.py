"""Attention within a sliding window, block by block: keys that none of a block's queries see are
left out, and no mask is as wide as all keys.

Shapes as in attention.py; of S positions the queries are the last T.
"""

from collections.abc import Callable

import torch
from torch import Tensor

QUERIES = 256
"""Of a block."""


def within(
    queries: int, keys: int, window: int | None, device: torch.device | None = None
) -> Tensor:
    """Which of the keys each of the last queries sees: those up to itself, at most `window` of
    them; (queries, keys) bool."""
    places = torch.arange(keys, device=device)
    own = places[keys - queries :, None]
    seen = places <= own
    return seen if window is None else seen & (places > own - window)


def windowed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    window: int,
    kernel: Callable[..., Tensor],
) -> Tensor:
    """`kernel` over blocks of q (B, H, T, K), k (B, H, S, K) and v (B, H, S, W); (B, H, T, W).

    mask (B, 1, T, S): what each query may see besides, in bool.
    """
    T, S = q.shape[2], k.shape[2]
    blocks = []
    for first in range(0, T, QUERIES):
        end = min(first + QUERIES, T)
        low, high = max(0, S - T + first - window + 1), S - T + end
        seen = within(end - first, high - low, window, q.device)
        if mask is not None:
            seen = seen & mask[:, :, first:end, low:high]
        keys = slice(low, high)
        blocks.append(kernel(q[:, :, first:end], k[:, :, keys], v[:, :, keys], attn_mask=seen))
    return torch.cat(blocks, dim=2)
