"""Kernels for training on a CPU, where memory traffic costs more than matrix products: the same
formulas in fewer passes over memory, in parts that fit the cache. Other devices use PyTorch's own.

Shapes as in attention.py; N tokens in a row of packed examples, S supervised ones.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simple_llama.model.packing import Packed

MAX_KEPT_KEYS = 512
"""With more keys than this, keeping attention's weights for the backward pass takes longer than
computing them again, as PyTorch's own kernel does."""
BLOCK_QUERIES = 256
"""Of a block, whose scores are computed at once; keys that none of them sees are left out."""
BLOCK_MULTIPLE = 32
"""The queries and keys of a block are padded to a multiple of it, so that few shapes occur: the
first matrix product of a shape is compiled for it, which takes longer than computing it."""
MAX_SCORES = 2**20
"""Computed at once, about: 2 MB in bfloat16, a core's cache."""
MAX_LOGITS = 2**19
"""Computed at once: 2 MB in float32."""


def uses_cpu_attention(q: Tensor) -> bool:
    """Whether `packed_attention` computes these queries: on a CPU, not compiled."""
    return q.device.type == "cpu" and not torch.compiler.is_compiling()


def uses_cpu_kernels(x: Tensor) -> bool:
    """Whether x's gradient will be computed by these functions."""
    return uses_cpu_attention(x) and torch.is_grad_enabled()


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * (offset + weight) (https://arxiv.org/abs/1910.07467), computed in float32. Under
    autocast the result has its type, so that the projections that read it need not each cast it."""

    def __init__(self, width: int, eps: float, offset: float = 0.0) -> None:
        super().__init__(width, eps)
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        weight: Tensor = self.weight
        if self.offset:  # in float32: bfloat16 would round small weights away
            x, weight = x.float(), weight.float() + self.offset
        if uses_cpu_kernels(x):
            return _RMSNorm.apply(x, weight, self.eps, dtype)  # type: ignore[no-any-return, no-untyped-call]
        # of x's type, so that one kernel computes it where the weight is held in another
        weight = weight.to(x.dtype)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps).to(dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x = x.float()
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square()
        scale = (square / x.shape[-1] + eps).rsqrt()
        ctx.save_for_backward(x, weight, scale)
        unit: Tensor = x * scale
        return unit.mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, scale = ctx.saved_tensors
        unit, grad = x * scale, grad.float()  # operations on mixed types are slow
        by_unit = grad * unit
        dweight = by_unit.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        # the result does not change with the length of x
        along = (by_unit @ weight)[..., None] / x.shape[-1]
        dx = (grad * weight).addcmul_(unit, along, value=-1).mul_(scale)
        return dx, dweight, None, None


def dropout_add(x: Tensor, branch: Tensor, rate: float) -> Tensor:
    """x + dropout(branch)."""
    if not uses_cpu_kernels(x):
        return x + F.dropout(branch, rate)
    # a random word decides four elements, so rates are multiples of 2^-16
    dropped = round(rate * 2**16)
    words = torch.empty(-(-branch.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    uniform = words.view(torch.int16)[: branch.numel()].view(branch.shape)
    keep = torch.empty(branch.shape, dtype=branch.dtype)
    torch.ge(uniform, dropped - 2**15, out=keep)
    return torch.add(x, branch * keep, alpha=1 / (1 - dropped / 2**16))


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, packed: Packed, scale: float | None = None
) -> Tensor:
    """softmax(scale q k^T) v of each example alone, causal: q (1, H, N, K), k (1, G, N, K) and
    v (1, G, N, W); (1, H, N, W)."""
    _, H, N, K = q.shape
    G = k.shape[1]
    offsets = packed.offsets.tolist()
    if packed.longest > MAX_KEPT_KEYS:
        k, v = k.repeat_interleave(H // G, 1), v.repeat_interleave(H // G, 1)
        lengths = [end - begin for begin, end in pairwise(offsets)]
        examples = zip(*(torch.split(x, lengths, dim=2) for x in (q, k, v)), strict=True)
        alone = [attention(q, k, v, is_causal=True, scale=scale) for q, k, v in examples]
        return torch.cat(alone, dim=2)
    scale = 1 / math.sqrt(K) if scale is None else scale
    out = _PackedAttention.apply(q.view(G, H // G, N, K), k[0], v[0], offsets, scale)  # type: ignore[no-untyped-call]
    return out.view(1, H, N, -1)  # type: ignore[no-any-return]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """PyTorch's fused attention. On a CPU it holds the weights of all queries by all keys where
    values have another width than keys, so that of long ones the narrower is padded."""
    K, W = q.shape[-1], v.shape[-1]
    if q.device.type == "cpu" and K != W and k.shape[2] > MAX_KEPT_KEYS:
        scale = 1 / math.sqrt(K) if scale is None else scale
        q, k, v = (F.pad(x, (0, max(K, W) - x.shape[-1])) for x in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=attn_mask, is_causal=is_causal, scale=scale
    )
    return out[..., :W]


class _PackedAttention(torch.autograd.Function):
    """q (G, R, N, K), k (G, N, K) and v (G, N, W): G heads of keys, each for R heads of queries."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, offsets: list[int], scale: float
    ) -> Tensor:
        out = q.new_empty(*q.shape[:3], v.shape[-1])
        # the last example's blocks may end beyond the row
        q = F.pad(q * scale, (0, 0, 0, BLOCK_MULTIPLE))
        k, v = F.pad(k, (0, 0, 0, BLOCK_MULTIPLE)), F.pad(v, (0, 0, 0, BLOCK_MULTIPLE))
        weights = []
        for block in _blocks(offsets, *q.shape[:2]):
            scores = torch.bmm(q[block.queries].flatten(1, 2), k[block.keys].transpose(1, 2))
            own = scores.view(-1, q.shape[1], block.size, scores.shape[-1])[..., -block.size :]
            own += torch.full((block.size, block.size), -math.inf, dtype=q.dtype).triu_(1)
            weights.append(scores.softmax(dim=-1))
            out[block.real] = block.without_rest(torch.bmm(weights[-1], v[block.keys]))
        ctx.offsets, ctx.scale = offsets, scale
        ctx.save_for_backward(q, k, v, *weights)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, *weights = ctx.saved_tensors
        dq, dk, dv = (
            q.new_empty(*grad.shape[:3], q.shape[-1]),
            torch.empty_like(k),
            torch.empty_like(v),
        )
        for block, share in zip(_blocks(ctx.offsets, *q.shape[:2]), weights, strict=True):
            dout = F.pad(grad[block.real], (0, 0, 0, block.rest)).flatten(1, 2)
            dshare = torch.bmm(dout, v[block.keys].transpose(1, 2))
            dscores = torch._softmax_backward_data(dshare, share, -1, share.dtype)
            dq[block.real] = block.without_rest(torch.bmm(dscores, k[block.keys]))
            queries = q[block.queries].flatten(1, 2)
            for whole, by, of in ((dk, dscores, queries), (dv, share, dout)):
                part = torch.bmm(by.transpose(1, 2), of)
                if block.first:
                    whole[block.keys] = part
                else:
                    whole[block.keys] += part
        N = grad.shape[2]
        return dq.mul_(ctx.scale), dk[:, :N], dv[:, :N], None, None


@dataclass(frozen=True)
class _Block:
    """Some queries of an example, and the keys that any of them may see."""

    heads: slice
    begin: int
    """Where the example begins."""
    place: int
    """Where its queries begin."""
    count: int
    size: int
    """count, rounded up to a multiple of BLOCK_MULTIPLE. What is added may be of the next example,
    and is left out of the result."""
    first: bool
    """Whether it is the first of its example to be computed: the one with the most keys."""

    @property
    def queries(self) -> tuple[slice, ...]:
        return self.heads, slice(None), slice(self.place, self.place + self.size)

    @property
    def real(self) -> tuple[slice, ...]:
        return self.heads, slice(None), slice(self.place, self.place + self.count)

    @property
    def keys(self) -> tuple[slice, ...]:
        return self.heads, slice(self.begin, self.place + self.size)

    @property
    def rest(self) -> int:
        return self.size - self.count

    def without_rest(self, x: Tensor) -> Tensor:
        """(N, R, count, W) of x (N, R * size, W)."""
        return x.view(len(x), -1, self.size, x.shape[-1])[:, :, : self.count]


def _blocks(offsets: list[int], groups: int, share: int) -> Iterator[_Block]:
    for begin, end in pairwise(offsets):
        for place in reversed(range(begin, end, BLOCK_QUERIES)):
            count = min(BLOCK_QUERIES, end - place)
            size = -(-count // BLOCK_MULTIPLE) * BLOCK_MULTIPLE
            heads = max(1, MAX_SCORES // (share * size * (place + size - begin)))
            for head in range(0, groups, heads):
                yield _Block(
                    slice(head, head + heads),
                    begin,
                    place,
                    count,
                    size,
                    place + BLOCK_QUERIES >= end,
                )


def kept_weights(lengths: Iterable[int]) -> int:
    """Attention's weights that `packed_attention` keeps, of a head, for examples of these lengths,
    at most MAX_KEPT_KEYS."""
    offsets = [0, *accumulate(lengths)]
    return sum(
        block.size * (block.place + block.size - block.begin) for block in _blocks(offsets, 1, 1)
    )


def pad_rows(x: Tensor, multiple: int) -> Tensor:
    """x (S, D) with rows of zeros below, to a multiple of them, so that few shapes occur."""
    return F.pad(x, (0, 0, 0, -len(x) % multiple)) if uses_cpu_kernels(x) else x


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats of logits (S, V) and targets (S,), summed, in float32. There may be
    more rows of logits; all may be overwritten."""
    if uses_cpu_kernels(logits):
        return _SummedCrossEntropy.apply(logits, targets)  # type: ignore[no-any-return, no-untyped-call]
    return F.cross_entropy(logits.float(), targets, reduction="sum")


class _SummedCrossEntropy(torch.autograd.Function):
    """The gradient, softmax minus one-hot, is computed with the loss, for they share exponentials.
    It overwrites the logits, which nothing else needs."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        loss = torch.zeros(())
        rows = max(1, MAX_LOGITS // logits.shape[1])
        for first in range(0, len(targets), rows):
            target = targets[first : first + rows, None]
            part = logits[first : first + len(target)]
            scores = part.log_softmax(dim=-1, dtype=torch.float32)
            loss -= scores.gather(1, target).sum()
            share = scores.exp_()
            part.copy_(share.scatter_add_(1, target, share.new_full(target.shape, -1.0)))
        logits[len(targets) :] = 0
        ctx.save_for_backward(logits)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0].mul_(grad), None
