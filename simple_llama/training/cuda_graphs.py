"""CUDA graphs: all kernels of a micro-batch launched at once. Launching them one by one from Python
is most of a small model's time.

A graph is of one shape, and reads and writes the same memory each time. So packed micro-batches are
padded to few shapes (`MicroBatch.in_fixed_shape`) and copied to their graph's inputs, and the
gradients that it leaves are added to the parameters' outside of it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from simple_llama.data.batches import MicroBatch
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import autocast
from simple_llama.training.loss import summed_loss

MAX_GRAPHS = 32
"""Each has memory of its own. Micro-batches of further shapes are computed without a graph."""

Work = Callable[[], None]


def capture(work: Work) -> Work:
    """A function that replays this work. PyTorch wants it done before capture, on a side stream."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


class CudaGraphs:
    """The graphs of one model, by shape."""

    def __init__(
        self, model: Decoder, precision: str, captured: Callable[[Work], Work] = capture
    ) -> None:
        self.model, self.precision, self.captured = model, precision, captured
        self.known: dict[tuple[int, ...], _Graph] = {}

    def compute(self, batch: MicroBatch, scale: float) -> Tensor | None:
        """The loss of a batch in fixed shape, times scale; its gradients are added to the
        parameters'. None: there are MAX_GRAPHS graphs of other shapes already."""
        shape = (batch.ids.shape[1], len(batch.targets))
        if shape not in self.known:
            if len(self.known) >= MAX_GRAPHS:
                return None
            self.known[shape] = _Graph(self, batch)
        return self.known[shape].compute(batch, scale)

    def clear(self) -> None:
        """Give their memory back."""
        self.known.clear()


class _Graph:
    def __init__(self, graphs: CudaGraphs, batch: MicroBatch) -> None:
        model = graphs.model
        device = next(model.parameters()).device
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.scale = torch.ones((), device=device)
        # later batches are copied into these, so they must not be the given tensors
        copies: Any = {name: x.to(device, copy=True) for name, x in _tensors(batch).items()}
        self.batch = replace(batch, **copies)
        self.loss = self.scale
        self.gradients: tuple[Tensor, ...] = ()

        def work() -> None:
            # captured too, or the weights would be cast once for all replays
            with autocast(device, graphs.precision):
                loss = summed_loss(model, self.batch) * self.scale
            self.gradients = torch.autograd.grad(loss, self.trained)
            self.loss = loss.detach()

        self.replay = graphs.captured(work)

    def compute(self, batch: MicroBatch, scale: float) -> Tensor:
        self.scale.fill_(scale)
        given = _tensors(batch.to(self.scale.device))
        for name, tensor in _tensors(self.batch).items():
            tensor.copy_(given[name])
        self.replay()
        # few kernels for all parameters, as in PyTorch's clipping and its fused AdamW
        held = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        if held:
            torch._foreach_add_(held, list(self.gradients))
        else:
            copies = torch._foreach_mul(list(self.gradients), 1.0)
            for parameter, copy in zip(self.trained, copies, strict=True):
                parameter.grad = copy
        return self.loss.clone()


def _tensors(batch: MicroBatch) -> dict[str, Tensor]:
    assert batch.offsets is not None, "packed"
    return {
        "ids": batch.ids,
        "positions": batch.positions,
        "targets": batch.targets,
        "offsets": batch.offsets,
    }
