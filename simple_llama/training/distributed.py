"""The processes that compute one training together: ranks, as PyTorch calls them.

Each holds the whole model (DistributedDataParallel), or, sharded, a part of each parameter and of
its optimizer state (FSDP2's fully_shard: https://arxiv.org/abs/2304.11277). PyTorch's engine is
imported where it is needed only: it takes a second.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from simple_llama.data.batches import Rank
from simple_llama.model.decoder import Decoder

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Ranks(Rank):
    """This process and the others. Every rank calls each method, in the same order."""

    @property
    def leads(self) -> bool:
        """Whether it is the one that tells, writes and is seen."""
        return self.number == 0

    def total(self, values: NDArray[Any]) -> NDArray[Any]:
        """The sum over all ranks, the same on each."""
        if self.of == 1:
            return values
        tensor = torch.from_numpy(values.copy())
        torch.distributed.all_reduce(tensor)
        return tensor.numpy()

    def told(self, value: T) -> T:
        """What rank 0 gives here."""
        return self.gathered(value)[0]

    def gathered(self, value: T) -> list[T]:
        """What each rank gives, by rank."""
        if self.of == 1:
            return [value]
        values: list[Any] = [None] * self.of
        torch.distributed.all_gather_object(values, value)
        return values


ALONE = Ranks()
PATIENCE = timedelta(days=1)
"""With a rank that lives but is late, say waiting for a lock. One that dies ends all the others."""


@contextlib.contextmanager
def group(kind: str, *, sharded: bool, url: str = "env://") -> Iterator[Ranks]:
    """Join the other ranks; `kind` of device: cpu or cuda. url: where to meet them, as
    torch.distributed.rendezvous reads it; torchrun sets what env:// needs."""
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    store, number, of = next(rendezvous(url))
    # on a GPU too, what is only said goes between CPUs
    backend = "gloo" if kind == "cpu" else f"cpu:gloo,{kind}:nccl"
    distributed.init_process_group(
        backend, store=store, rank=number, world_size=of, timeout=PATIENCE
    )
    try:
        yield Ranks(number=number, of=of, in_step=sharded)
    finally:
        distributed.destroy_process_group()


def shard(model: Decoder) -> None:
    """Spread each parameter over the ranks. A block is gathered while it is computed, what is
    around the blocks from the forward to the backward pass."""
    from torch.distributed.fsdp import fully_shard

    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)


def at_rest(model: nn.Module) -> None:
    """Give up what a forward pass without a backward pass leaves gathered."""
    # a method of sharded modules only
    reshard: Callable[[], None] = getattr(model, "reshard", lambda: None)
    reshard()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; every rank has to ask for it."""
    gather: Callable[[], Tensor] = getattr(tensor, "full_tensor", tensor.detach)
    return gather()


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be sharded."""
    part: Callable[[], Tensor] = getattr(tensor, "to_local", tensor.detach)
    return part()


class Averager:
    """Averages gradients over the ranks, once all micro-batches of a step are computed.

    DistributedDataParallel does it within a backward pass. This one is of nothing: ranks without
    micro-batches then do as all others, and before it they can still agree to compute the step
    again, where memory did not suffice on one of them.
    """

    def __init__(self, model: Decoder, ranks: Ranks) -> None:
        self.model = model
        self.replica: nn.Module | None = None
        if ranks.of > 1 and not ranks.in_step:  # sharded gradients are averaged as they arise
            self.replica = nn.parallel.DistributedDataParallel(model)

    def average(self) -> None:
        if self.replica is None:
            return
        one = torch.zeros(1, 1, dtype=torch.int64, device=next(self.model.parameters()).device)
        hidden = self.replica(one)
        self.model.logits(hidden[:0]).sum().backward()  # type: ignore[no-untyped-call]
