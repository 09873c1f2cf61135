"""The processes that compute one training together: ranks, as PyTorch calls them.

Each holds the whole model (DistributedDataParallel), or, sharded, a part of each parameter and of
its optimizer state (model/sharding.py).
"""

import atexit
import contextlib
import dataclasses
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import nn

from simple_llama.data.batches import Rank
from simple_llama.model.decoder import Decoder
from simple_llama.training.failures import RankFailures, RankProcess

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Ranks(Rank):
    """This process and the other ranks. All ranks have to call the same methods in the same
    order."""

    failures: RankFailures | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone prints, logs and publishes."""
        return self.rank == 0

    def all_reduce(self, values: NDArray[Any]) -> NDArray[Any]:
        """The sum over all ranks."""
        if self.world_size == 1:
            return values
        tensor = torch.from_numpy(values.copy())
        torch.distributed.all_reduce(tensor)
        return tensor.numpy()

    def broadcast(self, value: T) -> T:
        """Rank 0's value."""
        return self.all_gather(value)[0]

    def all_gather(self, value: T) -> list[T]:
        """The values of all ranks, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def propagate_errors(self) -> AbstractContextManager[None]:
        """An error in the block ends all ranks: see RankFailures.propagate."""
        return self.failures.propagate() if self.failures else contextlib.nullcontext()


SINGLE_PROCESS = Ranks()
TIMEOUT = timedelta(days=1)
"""For a rank that is late, such as one that waits for a lock. One that dies ends the others at
once: see failures."""


@contextlib.contextmanager
def init_process_group(kind: str, *, sharded: bool, url: str = "env://") -> Iterator[Ranks]:
    """Join the other ranks. kind: of device, cpu or cuda. url: where the ranks meet, as
    torch.distributed.rendezvous reads it; torchrun sets the variables that env:// needs."""
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    store, rank, world_size = next(rendezvous(url))
    # Python objects are sent from CPU to CPU, also where GPUs compute
    backend = "gloo" if kind == "cpu" else f"cpu:gloo,{kind}:nccl"
    distributed.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT
    )
    try:
        ranks = Ranks(rank=rank, world_size=world_size, sharded=sharded)
        processes = ranks.all_gather(RankProcess.current(rank))
        others = [process for process in processes if process.rank != rank]
        yield dataclasses.replace(ranks, failures=RankFailures(store, rank, others))
    except BaseException:
        # destroy_process_group would wait for a rank that is gone
        atexit.register(os._exit, 1)
        raise
    distributed.destroy_process_group()


class GradientAverager:
    """Averages gradients over the ranks, once all micro-batches of a step are computed.

    DistributedDataParallel averages within a backward pass; here that is an extra one, of no
    targets. So ranks without micro-batches take part like the others, and before it the ranks can
    agree to compute the step again where one ran out of memory.
    """

    def __init__(self, model: Decoder, ranks: Ranks) -> None:
        self.model = model
        self.replica: nn.Module | None = None
        # FSDP2 averages sharded gradients within the backward pass
        if ranks.world_size > 1 and not ranks.sharded:
            self.replica = nn.parallel.DistributedDataParallel(model)

    def average(self) -> None:
        if self.replica is None:
            return
        one = torch.zeros(1, 1, dtype=torch.int64, device=next(self.model.parameters()).device)
        hidden = self.replica(one)
        self.model.logits(hidden[:0]).sum().backward()  # type: ignore[no-untyped-call]
