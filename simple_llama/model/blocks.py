"""Attention by blocks of queries, for what PyTorch's kernels lack: sliding windows and padding of
cached keys. Keys that no query of a block sees are left out, and no mask or scores are of all
queries by all keys.

Shapes as in attention.py; of S positions the queries are the last T.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

BLOCK_QUERIES = 256


@dataclass(frozen=True)
class Cached:
    """That the queries are the last of cached positions, of which the first may be padding.

    padding 2, 3 cached, 2 new:    . . x x .
                                   . . x x x     (. hidden, x seen)

    A padded position sees itself, because a softmax over nothing is not a number.
    """

    padding: Tensor | None
    """(B,) leading positions of a row that are not real; None: all are."""
    place: Tensor | None = None
    """(1,) position of the one query where keys behind it are still to come; None: the last."""

    def mask(
        self, queries: int, low: int, high: int, device: torch.device, window: int | None = None
    ) -> Tensor:
        """Which of the keys from low to high each of the queries, the last of them, sees:
        (queries, keys) or (B, 1, queries, keys) bool."""
        places = torch.arange(low, high, device=device)
        own = places[high - low - queries :, None] if self.place is None else self.place[:, None]
        seen = places <= own
        if window is not None:
            seen &= places > own - window
        if self.padding is None:
            return seen
        real = places >= self.padding[:, None, None]
        return ((seen & real) | (places == own))[:, None]


def sliding_window_mask(
    queries: int,
    keys: int,
    window: int | None,
    device: torch.device | None = None,
    ahead: int = 0,
) -> Tensor:
    """Which of the keys each of the last queries sees: those up to itself, at most `window` of
    them; (queries, keys) bool. ahead: keys behind the last query, which none sees."""
    places = torch.arange(keys, device=device)
    own = places[keys - ahead - queries : keys - ahead, None]
    seen = places <= own
    return seen if window is None else seen & (places > own - window)


@lru_cache(maxsize=32)
def _added_mask(
    queries: int, keys: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The same as what is added to scores: 0 or minus infinity. Most blocks of all layers share
    one, which the backward pass then keeps once; of a bool PyTorch would make one for each."""
    with torch.inference_mode(False):
        seen = sliding_window_mask(queries, keys, window, device)
        return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf)


def blockwise_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cached: Cached | None,
    window: int | None,
    kernel: Callable[..., Tensor],
    *,
    added: bool,
) -> Tensor:
    """`kernel` over blocks of q (B, H, T, K), k (B, H, S, K) and v (B, H, S, W); (B, H, T, W).

    added: where nothing is cached the kernel takes what is added to the scores, else a bool mask.
    """
    T, S = q.shape[2], k.shape[2]
    blocks = []
    for first in range(0, T, BLOCK_QUERIES):
        end = min(first + BLOCK_QUERIES, T)
        high = S - T + end
        low = 0 if window is None else max(0, S - T + first - window + 1)
        if cached is not None:
            seen = cached.mask(end - first, low, high, q.device, window)
        elif added:
            seen = _added_mask(end - first, high - low, window, q.dtype, q.device)
        else:
            seen = sliding_window_mask(end - first, high - low, window, q.device)
        blocks.append(kernel(q[:, :, first:end], k[:, :, low:high], v[:, :, low:high], seen))
    return torch.cat(blocks, dim=2)
