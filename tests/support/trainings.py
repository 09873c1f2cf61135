"""Trainings of a second: examples, params, and a callback that remembers all it hears."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simple_llama.data.batches import MicroBatch, Plan
from simple_llama.data.tokens import Tokens
from simple_llama.model.attention import plain_attention
from simple_llama.model.blocks import sliding_window_mask
from simple_llama.model.decoder import Decoder
from simple_llama.params.reading import Params
from simple_llama.params.train import TrainParams
from simple_llama.training.loop import train
from simple_llama.training.loss import summed_loss
from simple_llama.training.preflight import Preflight
from simple_llama.training.state import Progress, Snapshot, StepRecord, TrainingData, TrainResult
from tests.support.models import tiny_config


def by_definition(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> Tensor:
    """PyTorch's varlen_attn as its documentation has it, for causal attention of heads whose width
    its kernels compute: one sequence after the other, (N, H or G, K)."""
    assert key.shape == value.shape
    assert enable_gqa == (query.shape != key.shape)
    share = query.shape[1] // key.shape[1]
    assert query.shape[-1] % 8 == 0
    assert all(x.is_contiguous() for x in (query, key, value))
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert max_q == max_k >= int(cu_seq_q.diff().max())
    before, after = window_size
    assert before >= -1 and after == 0
    out = torch.empty_like(query)
    for first, end in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        q, k, v = (x[first:end].transpose(0, 1) for x in (query, key, value))
        k, v = k.repeat_interleave(share, dim=0), v.repeat_interleave(share, dim=0)
        q = q * (scale * q.shape[-1] ** 0.5)  # what plain_attention divides by
        seen = sliding_window_mask(end - first, end - first, None if before < 0 else before + 1)
        out[first:end] = plain_attention(q[None], k[None], v[None], seen)[0].transpose(0, 1)
    return out


PAD, STOP = 0, 3


ROOT = Path(__file__).parents[2]


COMMITTED = ROOT / "params.yaml"


def params(**changes: object) -> TrainParams:
    values = {
        "device": "cpu",
        "precision": "fp32",
        "epochs": 2,
        "batch_size": 4,
        "max_lr": 1e-2,
        "warmup_iterations": 2,
        "eval_interval": 0,
        "sample_prompts": 0,
        "max_seq_len": 32,
        **changes,
    }
    return replace(Params(COMMITTED).section(TrainParams), **values)  # type: ignore[arg-type]


def examples(count: int, seed: int = 0) -> Tokens:
    """Prompts and replies of various lengths; a reply repeats the prompt's last tokens."""
    random = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        prompt = random.integers(4, 97, random.integers(2, 15))
        reply = prompt[-random.integers(1, len(prompt) + 1) :]
        ids = [*prompt, *reply, STOP]
        pairs.append((ids, [0] * len(prompt) + [1] * (len(reply) + 1)))
    return Tokens.from_examples(pairs)


def data(train_examples: int = 22, val_examples: int = 9) -> TrainingData:
    return TrainingData(
        train=examples(train_examples), val=examples(val_examples, 1), pad_id=PAD, stop_ids=[STOP]
    )


def new_model(dropout: float = 0.0) -> Decoder:
    model = Decoder(tiny_config(), dropout=dropout)
    model.init_weights(0)
    return model


class Listener:
    """Remembers all it hears."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []
        self.validations: list[tuple[int, float, int, bool]] = []
        self.samples: list[tuple[int, list[list[int]]]] = []
        self.saved: list[list[torch.Tensor]] = []
        self.epochs: list[int] = []
        self.rounded_base: list[tuple[float, int]] = []

    def on_train_begin(self, plan: Plan, progress: Progress) -> None:
        self.plan = plan
        self.lowerings: list[int] = []

    def on_rounded_base(self, loss: float, examples: int) -> None:
        self.rounded_base.append((loss, examples))

    def on_preflight(self, preflight: Preflight) -> None:
        self.preflight = preflight

    def on_out_of_memory(self, micro_batch_tokens: int) -> None:
        self.lowerings.append(micro_batch_tokens)

    def on_optimizer_step(self, record: StepRecord) -> None:
        self.steps.append(record)

    def on_validation(self, step: int, loss: float, examples: int, *, full: bool) -> None:
        self.validations.append((step, loss, examples, full))

    def on_samples(
        self, step: int, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]
    ) -> None:
        self.samples.append((step, [list(reply) for reply in replies]))

    def on_improvement(self, step: int, model: Decoder) -> None:
        self.saved.append([p.detach().clone() for p in model.parameters()])

    def on_epoch_end(self, epoch: int, model: Decoder) -> None:
        self.epochs.append(epoch)

    def on_step_end(self, snapshot: Callable[[], Snapshot], *, epoch_ended: bool) -> None:
        pass


class Keeper(Listener):
    """Keeps a snapshot of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.snapshots: list[Snapshot] = []

    def on_step_end(self, snapshot: Callable[[], Snapshot], *, epoch_ended: bool) -> None:
        now = snapshot()
        tensors = {name: tensor.clone() for name, tensor in now.tensors.items()}
        self.snapshots.append(Snapshot(copy.copy(now.progress), tensors))


def run(
    settings: TrainParams, given: TrainingData | None = None, model: Decoder | None = None
) -> tuple[Decoder, Listener, TrainResult]:
    model, listener = model or new_model(settings.dropout), Listener()
    return model, listener, train(model, given or data(), settings, listener)


def short_of_memory(limit: int, kind: type[RuntimeError], said: str) -> Callable[..., torch.Tensor]:
    """A summed_loss that a device with so little memory would compute."""

    def limited(model: Decoder, batch: MicroBatch) -> torch.Tensor:
        if batch.ids.numel() > limit:
            raise kind(said)
        return summed_loss(model, batch)

    return limited
