"""Training on a CPU, where memory traffic costs more than matrix products: the same formulas in
fewer passes over memory, part by part while it is in the cache. Elsewhere PyTorch's own compute.

Shapes as in attention.py; S here is the number of keys, of which the last T belong to the queries.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LONGEST = 512
"""Keys: beyond them attention's weights, kept for the backward pass, cost more time than to compute
them again, as PyTorch's own kernel does."""
QUERIES = 128
"""Whose scores are computed at once: keys that none of them may see are left out."""
SCORES = 2**20
"""At once, about: 2 MB in bfloat16, a core's cache."""
LOGITS = 2**19
"""At once: 2 MB in float32."""


def runs_here(x: Tensor) -> bool:
    """Whether x's gradient will be computed by these functions: on a CPU, not compiled."""
    return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * weight (https://arxiv.org/abs/1910.07467), computed in float32; under autocast
    given in its type, so that projections of the same x need not each cast it."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        if runs_here(x):
            return _RMSNorm.apply(x, self.weight, self.eps, dtype)  # type: ignore[no-any-return, no-untyped-call]
        return super().forward(x).to(dtype)


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
        # a change along x itself changes nothing
        along = (by_unit @ weight)[..., None] / x.shape[-1]
        dx = (grad * weight).addcmul_(unit, along, value=-1).mul_(scale)
        return dx, dweight, None, None


def add_dropped(x: Tensor, branch: Tensor, rate: float) -> Tensor:
    """x + dropout(branch)."""
    if not runs_here(x):
        return x + F.dropout(branch, rate)
    # a random word decides four elements, so rates are multiples of 2^-16
    dropped = round(rate * 2**16)
    words = torch.empty(-(-branch.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    uniform = words.view(torch.int16)[: branch.numel()].view(branch.shape)
    keep = torch.empty(branch.shape, dtype=branch.dtype)
    torch.ge(uniform, dropped - 2**15, out=keep)
    return torch.add(x, branch * keep, alpha=1 / (1 - dropped / 2**16))


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K)) v for queries (B, H, T, K) over keys and values (B, G, S, K), where
    the last query sees every key, the one before all but the last, and so on."""
    B, H, T, K = q.shape
    G, S = k.shape[1:3]
    out = _CausalAttention.apply(  # type: ignore[no-untyped-call]
        q.reshape(B * G, H // G, T, K), k.reshape(B * G, S, K), v.reshape(B * G, S, -1)
    )
    return out.view(B, H, T, -1)  # type: ignore[no-any-return]


class _CausalAttention(torch.autograd.Function):
    """q (N, R, T, K), k and v (N, S, K): N heads of keys, each for R heads of queries."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = q * (1 / math.sqrt(q.shape[-1]))
        out = q.new_empty(*q.shape[:3], v.shape[-1])
        weights = []
        for heads, queries, keys in _blocks(q, k):
            block = q[heads, :, queries].flatten(1, 2)  # (N, R * T, K)
            scores = torch.bmm(block, k[heads, keys].transpose(1, 2))
            own = scores.view(-1, *out[heads, :, queries].shape[1:3], scores.shape[-1])
            size = own.shape[2]
            own[..., -size:] += torch.full((size, size), -math.inf, dtype=q.dtype).triu_(1)
            weights.append(scores.softmax(dim=-1))
            seen = torch.bmm(weights[-1], v[heads, keys])
            out[heads, :, queries] = seen.view_as(out[heads, :, queries])
        ctx.save_for_backward(q, k, v, *weights)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *weights = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (heads, queries, keys), share in zip(_blocks(q, k), weights, strict=True):
            block = q[heads, :, queries].flatten(1, 2)
            dout = grad[heads, :, queries].flatten(1, 2)
            dv[heads, keys] += torch.bmm(share.transpose(1, 2), dout)
            dshare = torch.bmm(dout, v[heads, keys].transpose(1, 2))
            dscores = torch._softmax_backward_data(dshare, share, -1, share.dtype)
            dblock = torch.bmm(dscores, k[heads, keys])
            dq[heads, :, queries] = dblock.view_as(dq[heads, :, queries])
            dk[heads, keys] += torch.bmm(dscores.transpose(1, 2), block)
        return dq.mul_(1 / math.sqrt(q.shape[-1])), dk, dv


def _blocks(q: Tensor, k: Tensor) -> list[tuple[slice, slice, slice]]:
    """Heads, queries and the keys that any of these queries may see."""
    N, R, T, _ = q.shape
    earlier = k.shape[1] - T
    blocks = []
    for first in range(0, T, QUERIES):
        end = min(first + QUERIES, T)
        keys = slice(0, earlier + end)
        size = max(1, SCORES // (R * (end - first) * (earlier + end)))
        for head in range(0, N, size):
            blocks.append((slice(head, head + size), slice(first, end), keys))
    return blocks


def summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats of logits (S, V) and targets (S,), summed, in float32."""
    if runs_here(logits):
        return _SummedCrossEntropy.apply(logits, targets)  # type: ignore[no-any-return, no-untyped-call]
    return F.cross_entropy(logits.float(), targets, reduction="sum")


class _SummedCrossEntropy(torch.autograd.Function):
    """The gradient, softmax less one-hot, is computed beside the loss: they share exponentials."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        loss = torch.zeros(())
        grad = torch.empty_like(logits)
        rows = max(1, LOGITS // logits.shape[1])
        for first in range(0, len(logits), rows):
            part = slice(first, first + rows)
            target = targets[part, None]
            scores = logits[part].log_softmax(dim=-1, dtype=torch.float32)
            loss -= scores.gather(1, target).sum()
            share = scores.exp_()
            grad[part] = share.scatter_add_(1, target, share.new_full(target.shape, -1.0))
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * grad, None
