"""A model in parts: each parameter spread over the ranks by FSDP2's fully_shard
(https://arxiv.org/abs/2304.11277). PyTorch's engine is imported where it is needed only: it takes
a second."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from simple_llama.model.decoder import Decoder


def shard(model: Decoder, device: torch.device | str) -> None:
    """Spread each parameter over the ranks. A block is gathered while it is computed, what is
    around the blocks from the forward to the backward pass."""
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(torch.device(device).type, (get_world_size(),))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def at_rest(model: nn.Module) -> None:
    """Give up what a forward pass without a backward pass leaves gathered."""
    # a method of sharded modules only
    reshard: Callable[[], None] = getattr(model, "reshard", lambda: None)
    reshard()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; every rank has to ask for it."""
    gather: Callable[[], Tensor] = getattr(tensor, "full_tensor", tensor.detach)
    return gather()


def gather(model: nn.Module) -> None:
    """Help another rank, which asks for the whole of each parameter, one after the other."""
    for parameter in model.parameters():
        whole(parameter)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be sharded."""
    part: Callable[[], Tensor] = getattr(tensor, "to_local", tensor.detach)
    return part()


def fill(parameter: Tensor, values: Tensor) -> None:
    """Copy values, which every rank has, into a parameter that may be sharded."""
    if hasattr(parameter, "to_local"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(parameter, DTensor)
        values = distribute_tensor(
            values.to(parameter.dtype),
            parameter.device_mesh,
            parameter.placements,
            src_data_rank=None,  # no communication: each takes its part of its own copy
        )
    parameter.copy_(values)
