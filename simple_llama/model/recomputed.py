"""The plain formula of attention over whole examples, by blocks of queries whose weights are
computed again in the backward pass: for soft caps, which PyTorch's kernels lack, and for compiled
layers where it has no kernel. No mask or scores are of all tokens by all, and nothing but queries,
keys and values is kept.

Shapes as in attention.py, with keys and values for each of the H heads; T tokens, in one example or
several, each alone.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from simple_llama.model.blocks import sliding_window_mask

MIN_QUERIES, MAX_QUERIES = 16, 256
"""Of a block. Its keys are rounded up to a multiple of the latter, so that few shapes occur, and
memory that was freed can be taken again."""
MAX_SCORES = {"cpu": 2**22}
"""Of a block, about, over all heads: 16 MB in float32. A GPU needs more work at once."""
MAX_SCORES_ELSEWHERE = 2**26


@dataclass(frozen=True, kw_only=True)
class Formula:
    """softmax(c) v of scores c = scale q k^T, or, with a softcap, softcap * tanh(c / softcap)
    (https://arxiv.org/abs/2408.00118)."""

    scale: float | None
    """None: 1 / sqrt(K)."""
    softcap: float | None

    def weights(self, q: Tensor, k: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The softmax, in float32, of (B, H, queries, keys), and the tanh. seen: bool, at least
        one key of each query; None: all."""
        scores = q @ k.transpose(-1, -2)
        scores = scores / math.sqrt(q.shape[-1]) if self.scale is None else scores * self.scale
        bent = None
        if self.softcap is not None:
            bent = torch.tanh(scores / self.softcap)
            scores = self.softcap * bent
        if seen is not None:
            scores = scores.masked_fill(~seen, -math.inf)
        weights: Tensor = scores.float().softmax(dim=-1)
        return weights, bent

    def gradient(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor, grad: Tensor) -> list[Tensor]:
        """Those of q, k and v."""
        weights, bent = self.weights(q, k, seen)
        dv = weights.to(v.dtype).transpose(-1, -2) @ grad
        change = (grad @ v.transpose(-1, -2)).float()
        scores = torch._softmax_backward_data(change, weights, -1, torch.float32)
        if bent is not None:
            scores *= 1 - bent.float().square_()
        scores *= 1 / math.sqrt(q.shape[-1]) if self.scale is None else self.scale
        scores = scores.to(q.dtype)
        return [scores @ k, scores.transpose(-1, -2) @ q, dv]


def recomputed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None,
    scale: float | None,
    softcap: float | None,
    offsets: Tensor | None = None,
) -> Tensor:
    """(B, H, T, W) of q and k (B, H, T, K) and v (B, H, T, W): causal, each query with the last
    `window` of the keys that it would see. offsets: where examples begin, as Packed has them. k and
    v may be shared by heads."""
    share = q.shape[1] // k.shape[1]
    if share > 1:
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    if torch.compiler.is_compiling():
        return _compiled(q, k, v, offsets, window, scale, softcap)  # type: ignore[no-any-return]
    return _Recomputed.apply(q, k, v, offsets, window, scale, softcap)  # type: ignore[no-any-return, no-untyped-call]


@dataclass(frozen=True)
class _Block:
    queries: slice
    keys: slice
    seen: Tensor
    """(queries, keys) bool."""

    def of(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return q[:, :, self.queries], k[:, :, self.keys], v[:, :, self.keys]


def _blocks(q: Tensor, offsets: Tensor | None, window: int | None) -> Iterator[_Block]:
    """The last of an example is first, so that no later one needs more memory."""
    ends: Sequence[int] = [0, q.shape[2]] if offsets is None else offsets.tolist()
    heads, device = q.shape[0] * q.shape[1], q.device.type
    for begin, end in pairwise(ends):
        last = end
        while last > begin:
            high = min(end, last + (begin - last) % MAX_QUERIES)
            keys = last - begin if window is None else min(last - begin, window)
            first = max(begin, last - block_queries(device, heads, keys))
            low = begin if window is None else max(begin, first - window + 1)
            seen = sliding_window_mask(last - first, high - low, window, q.device, high - last)
            yield _Block(slice(first, last), slice(low, high), seen)
            last = first


def block_queries(device: str, heads: int, keys: int) -> int:
    """Of a block whose last query sees so many keys."""
    most, count = MAX_SCORES.get(device, MAX_SCORES_ELSEWHERE), MAX_QUERIES
    while count > MIN_QUERIES and heads * count * keys > most:
        count //= 2
    return count


def block_scores(device: str, heads: int, keys: int) -> int:
    """Scores of the largest block of an example of so many tokens."""
    return heads * keys * min(keys, block_queries(device, heads, keys))


def _forward(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor | None, window: int | None, formula: Formula
) -> Tensor:
    out = q.new_empty(*q.shape[:3], v.shape[-1])
    with torch.autocast(q.device.type, enabled=False):
        for block in _blocks(q, offsets, window):
            own, keys, values = block.of(q, k, v)
            weights, _ = formula.weights(own, keys, block.seen)
            out[:, :, block.queries] = weights.to(v.dtype) @ values
    return out


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor | None,
    window: int | None,
    formula: Formula,
) -> tuple[Tensor, Tensor, Tensor]:
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    # sums of many terms
    dk, dv = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (k, v))
    with torch.autocast(q.device.type, enabled=False):
        for block in _blocks(q, offsets, window):
            part = grad[:, :, block.queries]
            found = formula.gradient(*block.of(q, k, v), block.seen, part)
            dq[:, :, block.queries] = found[0]
            dk[:, :, block.keys] += found[1]
            dv[:, :, block.keys] += found[2]
    return dq, dk.to(k.dtype), dv.to(v.dtype)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        offsets: Tensor | None,
        window: int | None,
        scale: float | None,
        softcap: float | None,
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, offsets)
        ctx.window, ctx.formula = window, Formula(scale=scale, softcap=softcap)
        return _forward(q, k, v, offsets, window, ctx.formula)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, offsets = ctx.saved_tensors
        found = _backward(grad, q, k, v, offsets, ctx.window, ctx.formula)
        return *found, *[None] * 4


# What torch.compile does not look into: its loops depend on the examples. It is compiled once for
# all lengths.


@torch.library.custom_op("simple_llama::recomputed_attention", mutates_args=())
def _compiled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor | None,
    window: int | None,
    scale: float | None,
    softcap: float | None,
) -> Tensor:
    return _forward(q, k, v, offsets, window, Formula(scale=scale, softcap=softcap))


@_compiled.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return q.new_empty(*q.shape[:3], v.shape[-1])


@torch.library.custom_op("simple_llama::recomputed_attention_backward", mutates_args=())
def _compiled_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor | None,
    window: int | None,
    scale: float | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(grad, q, k, v, offsets, window, Formula(scale=scale, softcap=softcap))


@_compiled_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, offsets, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, offsets)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_compiled_backward(grad, *ctx.saved_tensors, *ctx.settings), *[None] * 4


_compiled.register_autograd(_differentiate, setup_context=_setup)
