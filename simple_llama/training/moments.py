"""AdamW's two moments of a parameter, kept in 32, 16 or 8 bits."""

from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Generator, Tensor

from simple_llama.training.rounding import BLOCK, from_8bit, levels, to_8bit, to_bf16

Precision = Literal["fp32", "bf16", "8bit"]
State = dict[str, Tensor]
NAMES = ("exp_avg", "exp_avg_sq")
"""As torch.optim.AdamW calls the mean of the gradients and that of their squares."""


class Moments(Protocol):
    """A way to keep them. A span is a part of a flat parameter that begins at a multiple of
    BLOCK."""

    bytes_each: float
    """Of one moment of one weight."""

    def new(self, weight: Tensor) -> State:
        """Zeros for a parameter."""

    def read(self, state: Mapping[str, Tensor], name: str, span: slice) -> Tensor:
        """Float32 (N,) of a span."""

    def write(
        self, state: Mapping[str, Tensor], name: str, span: slice, x: Tensor, g: Generator
    ) -> None:
        """Keep float32 (N,) of a span."""


class Float32:
    bytes_each = 4.0

    def new(self, weight: Tensor) -> State:
        return {name: torch.zeros_like(weight, dtype=torch.float32) for name in NAMES}

    def read(self, state: Mapping[str, Tensor], name: str, span: slice) -> Tensor:
        return state[name].view(-1)[span]

    def write(
        self, state: Mapping[str, Tensor], name: str, span: slice, x: Tensor, g: Generator
    ) -> None:
        state[name].view(-1)[span].copy_(x)


class BFloat16:
    """Rounded stochastically."""

    bytes_each = 2.0

    def new(self, weight: Tensor) -> State:
        return {name: torch.zeros_like(weight, dtype=torch.bfloat16) for name in NAMES}

    def read(self, state: Mapping[str, Tensor], name: str, span: slice) -> Tensor:
        return state[name].view(-1)[span].float()

    def write(
        self, state: Mapping[str, Tensor], name: str, span: slice, x: Tensor, g: Generator
    ) -> None:
        state[name].view(-1)[span].copy_(to_bf16(x, g))


class EightBit:
    """In blocks with a scale each. Of the squares the root is kept: it has half as many decades,
    so that it is not rounded to nothing while the mean beside it is not."""

    bytes_each = 1 + 4 / BLOCK

    def new(self, weight: Tensor) -> State:
        state = {}
        for name in NAMES:
            zero = int(torch.searchsorted(levels(name == "exp_avg", weight.device), 0.0))
            state[f"{name}.codes"] = torch.full_like(weight, zero, dtype=torch.uint8)
            blocks = -(-weight.numel() // BLOCK)
            state[f"{name}.scales"] = torch.zeros(blocks, device=weight.device)
        return state

    def read(self, state: Mapping[str, Tensor], name: str, span: slice) -> Tensor:
        codes = state[f"{name}.codes"].view(-1)[span]
        x = from_8bit(codes, state[f"{name}.scales"][_blocks(span)], name == "exp_avg")
        return x if name == "exp_avg" else x.square_()

    def write(
        self, state: Mapping[str, Tensor], name: str, span: slice, x: Tensor, g: Generator
    ) -> None:
        signed = name == "exp_avg"
        codes, scales = to_8bit(x if signed else x.sqrt(), signed, g)
        state[f"{name}.codes"].view(-1)[span].copy_(codes)
        state[f"{name}.scales"][_blocks(span)].copy_(scales)


def _blocks(span: slice) -> slice:
    return slice(span.start // BLOCK, -(-span.stop // BLOCK))


KINDS: dict[Precision, Moments] = {"fp32": Float32(), "bf16": BFloat16(), "8bit": EightBit()}
