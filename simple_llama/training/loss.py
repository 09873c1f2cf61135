"""The loss: cross-entropy summed over supervised tokens, to be divided by their number.

Sums, not means, so that micro-batches, last partial batches and ranks weigh every token alike.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from simple_llama.data.batches import IGNORE_INDEX, PAD_MULTIPLE, Indices, MicroBatch, micro_batches
from simple_llama.data.tokens import Tokens
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import autocast
from simple_llama.model.kernels import pad_rows, summed_cross_entropy
from simple_llama.model.packing import Packed
from simple_llama.model.sharding import reshard
from simple_llama.training.distributed import SINGLE_PROCESS, Ranks

MAX_LOGITS = 2**26
"""Held at once: 256 MB in float32. A large vocabulary's are computed in chunks."""


def summed_loss(model: Decoder, batch: MicroBatch) -> Tensor:
    """Cross-entropy in nats, summed over the batch's supervised tokens."""
    hidden, weight = _supervised(model, batch), model.lm_head.weight
    if len(hidden) * len(weight) > MAX_LOGITS:
        dtype = hidden.dtype
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
        if model.config.logits_scaling != 1:
            hidden = hidden / model.config.logits_scaling
        cap = model.config.final_logit_softcapping
        return _ChunkedCrossEntropy.apply(hidden, weight, batch.targets, cap, dtype)  # type: ignore[no-any-return, no-untyped-call]
    logits = model.lm_head(pad_rows(hidden, PAD_MULTIPLE))
    return summed_cross_entropy(logits, batch.targets)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of the logits hidden (S, D) times weight (V, D), soft-capped or not.

    Loss and gradient, softmax minus one-hot, are computed chunk by chunk: the (S, V) logits are
    never held whole.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        softcap: float | None,
        dtype: torch.dtype,
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            loss = torch.zeros((), device=hidden.device)
            cast = weight.to(dtype)
            dhidden = torch.empty_like(hidden)
            dweight = None
            if ctx.needs_input_grad[1]:  # summed up in float32, whatever the weight is held in
                dweight = torch.zeros_like(weight, dtype=torch.float32)
            rows = max(1, MAX_LOGITS // len(weight))
            for part, dpart, target in zip(
                *(torch.split(x, rows) for x in (hidden.to(dtype), dhidden, targets[:, None]))
            ):
                part_loss, gradient = _part(part, cast, target, softcap)
                loss += part_loss
                dpart.copy_(gradient @ cast)
                if dweight is not None:
                    dweight += gradient.T @ part
                del gradient  # before the next chunk's
        ctx.dtype = weight.dtype
        ctx.save_for_backward(dhidden, dweight)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        dhidden, dweight = ctx.saved_tensors
        if dweight is not None:
            dweight = dweight.mul_(grad).to(ctx.dtype)
        return dhidden.mul_(grad), dweight, None, None, None


def _part(
    hidden: Tensor, weight: Tensor, target: Tensor, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Summed loss of a chunk, hidden (P, D) and target (P, 1), and its gradient by the logits
    (P, V), in the type of weight (V, D). A function, so that what lies between is freed."""
    real = target != IGNORE_INDEX
    target = target.clamp_min(0)
    logits = F.linear(hidden, weight)
    if softcap is not None:
        bent = logits.float().div_(softcap).tanh_()
        logits = softcap * bent
    share = logits.log_softmax(dim=-1, dtype=torch.float32)
    del logits
    loss = -(share.gather(1, target) * real).sum()
    share.exp_().scatter_add_(1, target, share.new_full(target.shape, -1.0)).mul_(real)
    if softcap is not None:
        share *= bent.square_().neg_().add_(1)
    return loss, share.to(weight.dtype)


def _supervised(model: Decoder, batch: MicroBatch) -> Tensor:
    """Hidden states (S, D) at the positions that predict a supervised token, and nowhere else."""
    packed = None if batch.offsets is None else Packed(batch.offsets, batch.longest)
    hidden: Tensor = model(batch.ids, packed=packed)  # (B, T, D)
    return hidden.flatten(0, 1)[batch.positions]


@dataclass(frozen=True)
class Scores:
    """What a model makes of N examples, each (N,): sums over their supervised tokens."""

    loss: NDArray[np.float64]
    """Nats."""
    tokens: NDArray[np.int64]
    correct: NDArray[np.int64]
    """Tokens that were the most likely one."""

    @property
    def mean_loss(self) -> float:
        """Nats per supervised token."""
        return float(self.loss.sum() / self.tokens.sum())

    @property
    def accuracy(self) -> float:
        return float(self.correct.sum() / self.tokens.sum())


@torch.inference_mode()
def score(
    model: Decoder,
    tokens: Tokens,
    examples: Indices,
    *,
    max_tokens: int,
    pad_id: int,
    precision: str,
    ranks: Ranks = SINGLE_PROCESS,
) -> Scores:
    """Score examples in eval mode, without touching any random state.

    In order of `examples`, whatever the micro-batches of at most `max_tokens` tokens, padding
    included; each is computed by one of the ranks.
    """
    device = next(model.parameters()).device
    loss = np.zeros(len(tokens), np.float64)
    count = np.zeros(len(tokens), np.int64)
    correct = np.zeros(len(tokens), np.int64)
    was_training = model.training
    model.eval()
    for on_cpu in micro_batches(tokens, examples, max_tokens=max_tokens, pad_id=pad_id, rank=ranks):
        batch = on_cpu.to(device)
        with autocast(device, precision):
            losses, hits = _losses(model, _supervised(model, batch), batch.targets)
        rows, size = batch.example_index, len(batch.examples)
        loss[batch.examples] = np.bincount(rows, losses, size)
        count[batch.examples] = np.bincount(rows, minlength=size)
        correct[batch.examples] = np.bincount(rows, hits, size)
    model.train(was_training)
    reshard(model)
    return Scores(*(ranks.all_reduce(values)[examples] for values in (loss, count, correct)))


def _losses(model: Decoder, hidden: Tensor, targets: Tensor) -> NDArray[np.float64]:
    """Of each supervised token its loss, and whether it was the most likely one, (2, S)."""
    rows = max(1, MAX_LOGITS // model.config.vocab_size)
    parts = []
    for part, target in zip(torch.split(hidden, rows), torch.split(targets, rows)):
        logits = model.logits(part)
        losses = F.cross_entropy(logits, target, reduction="none")
        parts.append(torch.stack((losses, (logits.argmax(dim=-1) == target).float())))
    both: NDArray[np.float64] = torch.cat(parts, dim=1).double().cpu().numpy()
    return both
