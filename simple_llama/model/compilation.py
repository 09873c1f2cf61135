"""torch.compile of a model's layers: one program for all layers of a kind, so that compiling takes
seconds, however many there are. Outside of the layers there are only a few operations."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from simple_llama.model.decoder import Decoder, DecoderLayer


def compile_layers(model: Decoder) -> None:
    """Compile the layers for training, for any number of rows and tokens. Hooks, such as FSDP's,
    stay around them."""
    compiled = torch.compile(DecoderLayer.forward, dynamic=True)
    for layer in model.layers:
        layer.forward = partial(_forward, compiled, layer)


def undo_compilation(model: Decoder) -> None:
    """Undo compile_layers, also where it failed."""
    for layer in model.layers:
        vars(layer).pop("forward", None)


def _forward(compiled: Callable[..., Tensor], layer: Any, x: Tensor, *rest: Any) -> Tensor:
    # one token, as of a rank without work, would be compiled as a case of its own
    trains = torch.is_grad_enabled() and x.shape[1] > 1
    return compiled(layer, x, *rest) if trains else DecoderLayer.forward(layer, x, *rest)
