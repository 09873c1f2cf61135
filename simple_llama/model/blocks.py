"""Attention by blocks of queries, for what PyTorch's kernels lack: sliding windows and soft caps.
Keys that no query of a block sees are left out, and no mask or scores are of all queries by all
keys.

Shapes as in attention.py; of S positions the queries are the last T.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from simple_llama.model.kernels import MAX_KEPT_KEYS

BLOCK_QUERIES = 256


def sliding_window_mask(
    queries: int, keys: int, window: int | None, device: torch.device | None = None
) -> Tensor:
    """Which of the keys each of the last queries sees: those up to itself, at most `window` of
    them; (queries, keys) bool."""
    places = torch.arange(keys, device=device)
    own = places[keys - queries :, None]
    seen = places <= own
    return seen if window is None else seen & (places > own - window)


def blockwise_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    window: int | None,
    kernel: Callable[..., Tensor],
    *,
    recompute: bool = False,
) -> Tensor:
    """`kernel` over blocks of q (B, H, T, K), k (B, H, S, K) and v (B, H, S, W); (B, H, T, W).

    mask (B, 1, T, S): which of these keys each query may see, bool. recompute: keep nothing of long
    blocks for the backward pass.
    """
    T, S = q.shape[2], k.shape[2]
    blocks = []
    for first in range(0, T, BLOCK_QUERIES):
        end = min(first + BLOCK_QUERIES, T)
        high = S - T + end
        low = 0 if window is None else max(0, S - T + first - window + 1)
        seen = sliding_window_mask(end - first, high - low, window, q.device)
        if mask is not None:
            seen = seen & mask[:, :, first:end, low:high]
        block = (q[:, :, first:end], k[:, :, low:high], v[:, :, low:high], seen)
        if recompute and high - low > MAX_KEPT_KEYS and torch.is_grad_enabled():
            blocks.append(checkpoint(kernel, *block, use_reentrant=False, preserve_rng_state=False))
        else:
            blocks.append(kernel(*block))
    return torch.cat(blocks, dim=2)
