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
    """This process and the others. Every rank calls each method, in the same order."""

    failures: RankFailures | None = None

    @property
    def is_main(self) -> bool:
        """Whether it is the one that tells, writes and is seen."""
        return self.rank == 0

    def all_reduce(self, values: NDArray[Any]) -> NDArray[Any]:
        """The sum over all ranks, the same on each."""
        if self.world_size == 1:
            return values
        tensor = torch.from_numpy(values.copy())
        torch.distributed.all_reduce(tensor)
        return tensor.numpy()

    def broadcast(self, value: T) -> T:
        """What rank 0 gives here."""
        return self.all_gather(value)[0]

    def all_gather(self, value: T) -> list[T]:
        """What each rank gives, by rank."""
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
"""With a rank that lives but is late, say waiting for a lock. One that dies ends all the others."""


@contextlib.contextmanager
def init_process_group(kind: str, *, sharded: bool, url: str = "env://") -> Iterator[Ranks]:
    """Join the other ranks; `kind` of device: cpu or cuda. url: where to meet them, as
    torch.distributed.rendezvous reads it; torchrun sets what env:// needs."""
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    store, rank, world_size = next(rendezvous(url))
    # on a GPU too, what is only said goes between CPUs
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
        # the group's own end would wait for what a rank that is gone was to send
        atexit.register(os._exit, 1)
        raise
    distributed.destroy_process_group()


class GradientAverager:
    """Averages gradients over the ranks, once all micro-batches of a step are computed.

    DistributedDataParallel does it within a backward pass. This one is of nothing: ranks without
    micro-batches then do as all others, and before it they can still agree to compute the step
    again, where memory did not suffice on one of them.
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
