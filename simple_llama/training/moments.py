"""AdamW's two moments of a parameter, kept in 32, 16 or 8 bits."""

from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Generator, Tensor

from simple_llama.training.rounding import (
    BLOCK_SIZE,
    dequantize_8bit,
    dynamic_map,
    quantize_8bit,
    stochastic_round_bf16,
)

Precision = Literal["fp32", "bf16", "8bit"]
State = dict[str, Tensor]
MOMENT_NAMES = ("exp_avg", "exp_avg_sq")
"""As torch.optim.AdamW calls the mean of the gradients and that of their squares."""


class Moments(Protocol):
    """A format to keep them in. A span is a part of a flattened parameter, and begins at a multiple
    of BLOCK_SIZE."""

    bytes_per_element: float
    """Of one moment of one weight."""

    def zeros(self, weight: Tensor) -> State:
        """Zeros for a parameter."""

    def read(self, state: Mapping[str, Tensor], name: str, span: slice) -> Tensor:
        """Float32 (N,) of a span."""

    def write(
        self, state: Mapping[str, Tensor], name: str, span: slice, x: Tensor, g: Generator
    ) -> None:
        """Keep float32 (N,) of a span."""


class Float32:
    bytes_per_element = 4.0

    def zeros(self, weight: Tensor) -> State:
        return {name: torch.zeros_like(weight, dtype=torch.float32) for name in MOMENT_NAMES}

    def read(self, state: Mapping[str, Tensor], name: str, span: slice) -> Tensor:
        return state[name].view(-1)[span]

    def write(
        self, state: Mapping[str, Tensor], name: str, span: slice, x: Tensor, g: Generator
    ) -> None:
        state[name].view(-1)[span].copy_(x)


class BFloat16:
    """Rounded stochastically."""

    bytes_per_element = 2.0

    def zeros(self, weight: Tensor) -> State:
        return {name: torch.zeros_like(weight, dtype=torch.bfloat16) for name in MOMENT_NAMES}

    def read(self, state: Mapping[str, Tensor], name: str, span: slice) -> Tensor:
        return state[name].view(-1)[span].float()

    def write(
        self, state: Mapping[str, Tensor], name: str, span: slice, x: Tensor, g: Generator
    ) -> None:
        state[name].view(-1)[span].copy_(stochastic_round_bf16(x, g))


class EightBit:
    """In blocks, each with a scale. Of exp_avg_sq the square root is kept: it spans half as many
    decades, so it is not rounded to zero where exp_avg is not."""

    bytes_per_element = 1 + 4 / BLOCK_SIZE

    def zeros(self, weight: Tensor) -> State:
        state = {}
        for name in MOMENT_NAMES:
            zero = int(torch.searchsorted(dynamic_map(name == "exp_avg", weight.device), 0.0))
            state[f"{name}.codes"] = torch.full_like(weight, zero, dtype=torch.uint8)
            blocks = -(-weight.numel() // BLOCK_SIZE)
            state[f"{name}.scales"] = torch.zeros(blocks, device=weight.device)
        return state

    def read(self, state: Mapping[str, Tensor], name: str, span: slice) -> Tensor:
        codes = state[f"{name}.codes"].view(-1)[span]
        x = dequantize_8bit(codes, state[f"{name}.scales"][_blocks(span)], name == "exp_avg")
        return x if name == "exp_avg" else x.square_()

    def write(
        self, state: Mapping[str, Tensor], name: str, span: slice, x: Tensor, g: Generator
    ) -> None:
        signed = name == "exp_avg"
        codes, scales = quantize_8bit(x if signed else x.sqrt(), signed, g)
        state[f"{name}.codes"].view(-1)[span].copy_(codes)
        state[f"{name}.scales"][_blocks(span)].copy_(scales)


def _blocks(span: slice) -> slice:
    return slice(span.start // BLOCK_SIZE, -(-span.stop // BLOCK_SIZE))


MOMENTS: dict[Precision, Moments] = {"fp32": Float32(), "bf16": BFloat16(), "8bit": EightBit()}
