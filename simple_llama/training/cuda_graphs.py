"""Forward and backward pass of a micro-batch as a CUDA graph.

A graph is of one shape. So packed micro-batches are padded to few shapes
(`MicroBatch.in_fixed_shape`) and copied to their graph's inputs, and every graph adds its gradients
to the same tensors, which become the parameters' `grad`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from simple_llama.data.batches import MicroBatch
from simple_llama.model.capture import Capture, Work, shared_capture
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import autocast
from simple_llama.training.loss import summed_loss

MAX_GRAPHS = 32
"""Capturing takes longer than a few steps. Micro-batches of further shapes are computed, to the
same bytes, without a graph."""


class CudaGraphs:
    """The graphs of one model, by shape."""

    def __init__(
        self, model: Decoder, precision: str, new_capture: Callable[[], Capture] = shared_capture
    ) -> None:
        self.model, self.precision, self.new_capture = model, precision, new_capture
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.device = self.trained[0].device
        self.clear()

    def clear(self) -> None:
        """Give the graphs' memory back."""
        self.known: dict[tuple[int, ...], _Computation] = {}
        self.gradients: list[Tensor] = []
        self.capture = self.new_capture()

    def compute(self, batch: MicroBatch, scale: float) -> Tensor:
        """The loss of a batch in fixed shape, times scale; its gradients are added to the
        parameters'."""
        self._hold_gradients()
        shape = (batch.ids.shape[1], len(batch.targets))
        computation = self.known.get(shape)
        if computation is None:
            computation = _Computation(self, batch)
            if len(self.known) < MAX_GRAPHS:
                # what is tried before capture must not move on the random numbers of dropout: a
                # training that is continued captures at other steps
                devices = [self.device] if self.device.type == "cuda" else []
                with torch.random.fork_rng(devices):
                    computation.replay = self.capture(computation.add)
                self.known[shape] = computation
        return computation.compute(batch, scale)

    def _hold_gradients(self) -> None:
        """Let the parameters' gradients be those that the graphs add to."""
        if not self.gradients:
            self.gradients = [torch.zeros_like(p) for p in self.trained]
        if self.trained[0].grad is None:  # the first micro-batch of a step
            torch._foreach_zero_(self.gradients)
            for parameter, gradient in zip(self.trained, self.gradients, strict=True):
                parameter.grad = gradient


class _Computation:
    """Loss and gradients of micro-batches of one shape."""

    def __init__(self, graphs: CudaGraphs, batch: MicroBatch) -> None:
        self.graphs = graphs
        # 0 until a batch is computed: what is tried before capture adds nothing to the gradients
        self.scale = torch.zeros((), device=graphs.device)
        # later batches are copied into these, so they must not be the given tensors
        copies: Any = {name: x.to(graphs.device, copy=True) for name, x in _tensors(batch).items()}
        self.batch = replace(batch, **copies)
        self.loss = self.scale
        self.replay: Work = self.add

    def add(self) -> None:
        """Compute the loss, and add its gradients."""
        graphs = self.graphs
        # within: otherwise the weights would be cast once for all replays
        with autocast(graphs.device, graphs.precision):
            loss = summed_loss(graphs.model, self.batch) * self.scale
        torch._foreach_add_(graphs.gradients, list(torch.autograd.grad(loss, graphs.trained)))
        self.loss = loss.detach()

    def compute(self, batch: MicroBatch, scale: float) -> Tensor:
        self.scale.fill_(scale)
        given = _tensors(batch.to(self.scale.device))
        for name, tensor in _tensors(self.batch).items():
            tensor.copy_(given[name])
        self.replay()
        return self.loss.clone()


def _tensors(batch: MicroBatch) -> dict[str, Tensor]:
    assert batch.offsets is not None, "packed"
    return {
        "ids": batch.ids,
        "positions": batch.positions,
        "targets": batch.targets,
        "offsets": batch.offsets,
    }
