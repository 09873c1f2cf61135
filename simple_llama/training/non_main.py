"""Training on the ranks other than 0, which print, log and publish nothing."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from simple_llama.data.batches import Plan
from simple_llama.model.decoder import Decoder
from simple_llama.model.sharding import gather_full_tensors
from simple_llama.training.distributed import Ranks
from simple_llama.training.loop import train
from simple_llama.training.preflight import Preflight
from simple_llama.training.setup import Setup
from simple_llama.training.snapshot_files import write_tensors
from simple_llama.training.state import Diverged, Progress, Snapshot, StepRecord


class NonMainCallback:
    """A Callback that takes part in what rank 0's Recorder writes: parameters are gathered by all
    ranks, and each writes its part of the resume state."""

    def __init__(self, ranks: Ranks, ckpt_epochs: int) -> None:
        self.ranks, self.ckpt_epochs = ranks, ckpt_epochs

    def on_train_begin(self, plan: Plan, progress: Progress) -> None:
        pass

    def on_preflight(self, preflight: Preflight) -> None:
        pass

    def on_out_of_memory(self, micro_batch_tokens: int) -> None:
        pass

    def on_optimizer_step(self, record: StepRecord) -> None:
        pass

    def on_rounded_base(self, loss: float, examples: int) -> None:
        pass

    def on_validation(self, step: int, loss: float, examples: int, *, full: bool) -> None:
        pass

    def on_samples(
        self, step: int, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]
    ) -> None:
        pass

    def on_improvement(self, step: int, model: Decoder) -> None:
        gather_full_tensors(model)

    def on_epoch_end(self, epoch: int, model: Decoder) -> None:
        if self.ckpt_epochs and epoch % self.ckpt_epochs == 0:
            gather_full_tensors(model)

    def on_step_end(self, snapshot: Callable[[], Snapshot], *, epoch_ended: bool) -> None:
        """Write this rank's part where rank 0 names a place for it."""
        place = self.ranks.broadcast(None)
        if place is not None:
            write_tensors(snapshot().tensors, place, self.ranks)


def train_as_non_main(setup: Setup, ranks: Ranks) -> None:
    """What training.run does on rank 0, without what only rank 0 does."""
    snapshot: Snapshot | None = ranks.broadcast(None)
    torch.set_num_threads(ranks.broadcast(0))
    callback = NonMainCallback(ranks, setup.params.ckpt_epochs)
    try:
        train(setup.model, setup.data, setup.params, callback, snapshot, ranks)
    except Diverged as error:
        write_tensors(error.snapshot.tensors, ranks.broadcast(Path()), ranks)
        raise
