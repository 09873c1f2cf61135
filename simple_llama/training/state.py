"""What a training is given, carries from step to step, and gives back."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simple_llama.data.batches import Indices, MicroBatch
from simple_llama.data.tokens import Tokens
from simple_llama.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The two splits and the ids that batching and sampling need."""

    train: Tokens
    val: Tokens
    pad_id: int
    stop_ids: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one optimizer step did."""

    step: int
    """1 for the first."""
    epoch: float
    """Epochs done after this step."""
    loss: float
    """Nats per supervised token, before the update."""
    lr: float
    grad_norm: float
    """Before clipping."""
    tokens: int
    """Real tokens, without padding."""
    seconds: float


@dataclass
class Progress:
    """What the loop carries from step to step besides weights and optimizer."""

    micro_batch_tokens: int
    """The param's, what auto found, or less where memory did not suffice."""
    next_sample: int
    sample_interval: float
    step: int = 0
    compiled: bool | None = None
    """What enable_compilation: auto has decided on; None: nothing yet."""
    best_val_loss: float = math.inf
    best_step: int = 0
    epochs_without_better: int = 0
    loss_sum: float = 0.0
    """Over the current epoch, with loss_tokens: its token-weighted training loss."""
    loss_tokens: int = 0
    recent_loss: float = 0.0
    """Mean over some 50 steps."""
    train_loss: float = math.nan
    """Of the epoch that ended last, like val_loss."""
    val_loss: float = math.nan
    rounded_base_val_loss: float | None = None
    """Before the first step, where lora_base is nf4."""


@dataclass(frozen=True)
class Snapshot:
    """The state of a training between two steps: restored, it continues to the same bytes."""

    progress: Progress
    tensors: Mapping[str, Tensor]
    """Weights and AdamW's moments: the live tensors, which the next step changes."""

    def copy_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the kept tensors into those of the training that continues.

        Raises InputError where they are another training's.
        """
        kept = self.tensors
        different = {
            name
            for name in tensors.keys() | kept.keys()
            if name not in tensors or name not in kept or tensors[name].shape != kept[name].shape
        }
        if different:
            raise InputError(f"the snapshot is of another training: {min(different)} differs")
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(kept[name])


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What came of a training; losses in nats per supervised token."""

    steps: int
    epochs: float
    """Passes over the examples that it may see, which max_train_examples limits."""
    examples: int
    """Different examples that a step saw."""
    train_loss: float
    """Over the last epoch's steps, as each was trained."""
    val_loss: float
    """Full validation after the last step."""
    best_val_loss: float
    best_step: int
    rounded_base_val_loss: float | None = None
    """Full validation of the base before the first step, where it is held in 4 bits."""


class Diverged(InputError):
    """A loss or a gradient is not a finite number, or the loss leapt beyond loss_spike.

    examples, batches: of the step whose update was not made; where a validation shows it, of the
    step before, and empty where there was none. snapshot: the state then.
    """

    def __init__(
        self,
        step: int,
        what: str,
        examples: Indices,
        batches: Sequence[MicroBatch],
        snapshot: Snapshot,
    ) -> None:
        super().__init__(
            f"training diverged at step {step}: {what}; a lower max_lr or a longer warmup may help"
        )
        self.step = step
        self.what = what
        self.examples = examples
        self.batches = batches
        self.snapshot = snapshot
