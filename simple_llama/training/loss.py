"""The loss: cross-entropy summed over supervised tokens, to be divided by their number.

Sums, not means, so that micro-batches, last partial batches and ranks weigh every token alike.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from simple_llama.data.batches import EVEN, Indices, MicroBatch, micro_batches
from simple_llama.data.tokens import Tokens
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import autocast
from simple_llama.model.kernels import even_rows, summed_cross_entropy
from simple_llama.model.packing import Packed
from simple_llama.model.sharding import at_rest
from simple_llama.training.distributed import ALONE, Ranks


def summed_loss(model: Decoder, batch: MicroBatch) -> Tensor:
    """Cross-entropy in nats, summed over the batch's supervised tokens."""
    logits = model.lm_head(even_rows(_supervised(model, batch), EVEN))
    return summed_cross_entropy(logits, batch.targets)


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
    budget: int,
    pad_id: int,
    precision: str,
    ranks: Ranks = ALONE,
) -> Scores:
    """Score examples in eval mode, without touching any random state.

    In order of `examples`, whatever the micro-batches of at most `budget` padded tokens; each is
    computed by one of the ranks.
    """
    device = next(model.parameters()).device
    loss = np.zeros(len(tokens), np.float64)
    count = np.zeros(len(tokens), np.int64)
    correct = np.zeros(len(tokens), np.int64)
    was_training = model.training
    model.eval()
    for on_cpu in micro_batches(tokens, examples, budget=budget, pad_id=pad_id, rank=ranks):
        batch = on_cpu.to(device)
        with autocast(device, precision):
            logits = model.logits(_supervised(model, batch))
        losses = F.cross_entropy(logits, batch.targets, reduction="none")
        hits = logits.argmax(dim=-1) == batch.targets
        rows, size = batch.rows, len(batch.examples)
        loss[batch.examples] = np.bincount(rows, losses.cpu().double().numpy(), size)
        count[batch.examples] = np.bincount(rows, minlength=size)
        correct[batch.examples] = np.bincount(rows, hits.cpu().numpy(), size)
    model.train(was_training)
    at_rest(model)
    return Scores(*(ranks.total(values)[examples] for values in (loss, count, correct)))
