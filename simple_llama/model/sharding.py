"""Models whose parameters are sharded over the ranks by FSDP2's fully_shard
(https://arxiv.org/abs/2304.11277). It is imported within functions: that takes a second."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from simple_llama.model.decoder import Decoder


def shard(model: Decoder, device: torch.device | str) -> None:
    """Shard each parameter. A block's are gathered while it is computed, those outside of blocks
    from the forward to the backward pass."""
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(torch.device(device).type, (get_world_size(),))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def reshard(model: nn.Module) -> None:
    """Free the parameters that a forward pass without a backward pass leaves gathered."""
    # a method of sharded modules only
    of_fsdp: Callable[[], None] = getattr(model, "reshard", lambda: None)
    of_fsdp()


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded. All ranks have to call it."""
    of_dtensor: Callable[[], Tensor] = getattr(tensor, "full_tensor", tensor.detach)
    return of_dtensor()


def gather_full_tensors(model: nn.Module) -> None:
    """Take part in another rank's full_tensor of each parameter, in their order."""
    for parameter in model.parameters():
        full_tensor(parameter)


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")


def to_local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be sharded."""
    of_dtensor: Callable[[], Tensor] = getattr(tensor, "to_local", tensor.detach)
    return of_dtensor()


def copy_full_tensor(parameter: Tensor, values: Tensor) -> None:
    """Copy values, which every rank has, into a parameter that may be sharded."""
    if is_sharded(parameter):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(parameter, DTensor)
        values = distribute_tensor(
            values.to(parameter.dtype),
            parameter.device_mesh,
            parameter.placements,
            src_data_rank=None,  # no communication: each takes its part of its own copy
        )
    parameter.copy_(values)
