"""What the training loop tells whoever listens."""

from collections.abc import Callable, Sequence
from typing import Protocol

from simple_llama.data.batches import Plan
from simple_llama.model.decoder import Decoder
from simple_llama.training.preflight import Preflight
from simple_llama.training.state import Progress, Snapshot, StepRecord


class Callback(Protocol):
    """Hears what happens in the loop."""

    def on_train_begin(self, plan: Plan, progress: Progress) -> None:
        """Before the first step, or the first after a restored snapshot."""

    def on_preflight(self, preflight: Preflight) -> None: ...
    def on_out_of_memory(self, micro_batch_tokens: int) -> None:
        """Memory did not suffice: micro-batches are smaller from here on."""

    def on_optimizer_step(self, record: StepRecord) -> None: ...
    def on_rounded_base(self, loss: float, examples: int) -> None:
        """The base, held in 4 bits, has been validated before the first step."""

    def on_validation(self, step: int, loss: float, examples: int, *, full: bool) -> None: ...
    def on_samples(
        self, step: int, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]
    ) -> None: ...
    def on_improvement(self, step: int, model: Decoder) -> None:
        """The model is the best so far: keep it."""

    def on_epoch_end(self, epoch: int, model: Decoder) -> None: ...
    def on_step_end(self, snapshot: Callable[[], Snapshot], *, epoch_ended: bool) -> None:
        """All that belongs to a step is done: the moment to keep a snapshot."""
