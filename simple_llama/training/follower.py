"""What ranks other than the first do where that one speaks and writes."""

from collections.abc import Callable, Sequence

from simple_llama.data.batches import Plan
from simple_llama.model.decoder import Decoder
from simple_llama.model.sharding import gather
from simple_llama.training.distributed import Ranks
from simple_llama.training.observer import Progress, Snapshot, StepRecord
from simple_llama.training.preflight import Preflight
from simple_llama.training.stored import write_tensors


class Follower:
    """An Observer that is silent, and does its part of what a Recorder writes."""

    def __init__(self, ranks: Ranks, ckpt_epochs: int) -> None:
        self.ranks, self.ckpt_epochs = ranks, ckpt_epochs

    def started(self, plan: Plan, progress: Progress) -> None:
        pass

    def preflighted(self, preflight: Preflight) -> None:
        pass

    def lowered(self, micro_batch_tokens: int) -> None:
        pass

    def stepped(self, record: StepRecord) -> None:
        pass

    def validated(self, step: int, loss: float, examples: int, *, full: bool) -> None:
        pass

    def sampled(
        self, step: int, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]
    ) -> None:
        pass

    def improved(self, step: int, model: Decoder) -> None:
        gather(model)

    def epoch_ended(self, epoch: int, model: Decoder) -> None:
        if self.ckpt_epochs and epoch % self.ckpt_epochs == 0:
            gather(model)

    def step_ended(self, snapshot: Callable[[], Snapshot], *, epoch_ended: bool) -> None:
        """Write this rank's part where rank 0 names a place for it."""
        place = self.ranks.told(None)
        if place is not None:
            write_tensors(snapshot().tensors, place, self.ranks)
