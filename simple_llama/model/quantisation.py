"""Frozen projections in 4-bit NormalFloat with double quantisation, as QLoRA holds them
(https://arxiv.org/abs/2305.14314, section 3), by bitsandbytes' kernels.

A weight is one of 16 levels times the scale of its block of 64, which is their largest absolute
value. Of the scales the mean is taken away, and what is left is one of 256 levels times the scale
of its block of 256: in all 4 + 8 / 64 + 32 / (64 * 256) = 4.127 bits a weight.
"""

import importlib.util
import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simple_llama.errors import InputError
from simple_llama.model.decoder import Decoder
from simple_llama.model.sharding import to_local

BLOCK, SCALE_BLOCK = 64, 256
BYTES_EACH = (4 + 8 / BLOCK + 32 / (BLOCK * SCALE_BLOCK)) / 8
"""Of a weight."""
SPAN = 2**20
"""Weights that are rounded at once: what is computed of them in between takes some 20 bytes
each."""


INSTALL = "pip install -e '.[qlora]'"
"""What quantises is not among what is installed first."""


def has_library() -> bool:
    """Whether what quantises is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


def require_library() -> None:
    """Raises InputError where what quantises is not installed."""
    if not has_library():
        raise InputError(
            f"lora_base: nf4 needs bitsandbytes, which is not installed: {INSTALL}, or "
            "lora_base: bf16"
        )


def library_version() -> str:
    """Of what quantises: another may round in another way."""
    from importlib.metadata import version

    return version("bitsandbytes")


def _library() -> Any:
    """Imported where it is needed only: it takes seconds, and has its operations in torch.ops."""
    require_library()
    # that a kernel for generation, which nothing here does, was not found
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import bitsandbytes.functional

    return bitsandbytes.functional


class NF4Linear(nn.Module):
    """A frozen projection in 4 bits: x W^T + bias, computed with W rounded, in x's type, or in
    autocast's. W is made of its codes in the forward and again in the backward pass."""

    codes: Tensor
    """uint8 (ceil(out * in / 2),): two weights each."""
    scale_codes: Tensor
    """uint8, one for each block of weights."""
    scale_scales: Tensor
    """float32, one for each block of scales."""
    mean_scale: Tensor
    """float32 (1,)."""
    scale_levels: Tensor
    """float32 (256,)."""

    def __init__(self, linear: nn.Linear) -> None:
        """In the place of `linear`, whose bias it takes over; without weights yet."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias

    @property
    def size(self) -> int:
        """Weights."""
        return self.in_features * self.out_features

    def quantise(self, weight: Tensor) -> None:
        """Hold the weight (out, in), of any floating type, rounded.

        Its bytes depend neither on the number of threads nor on the ranks.
        """
        functional, flat = _library(), weight.detach().reshape(-1)
        codes, scales = [], []
        for start in range(0, self.size, SPAN):
            code, state = functional.quantize_4bit(
                flat[start : start + SPAN].float(), blocksize=BLOCK, quant_type="nf4"
            )
            codes.append(code.view(-1))
            scales.append(state.absmax)
        scale = torch.cat(scales)
        # by NumPy, whose sum is the same for any number of threads
        mean = torch.full((1,), float(scale.cpu().double().numpy().mean()), device=weight.device)
        scale_codes, state = functional.quantize_blockwise(scale - mean, blocksize=SCALE_BLOCK)
        for name, tensor in {
            "codes": torch.cat(codes),
            "scale_codes": scale_codes,
            "scale_scales": state.absmax,
            "mean_scale": mean,
            "scale_levels": state.code,
        }.items():
            self.register_buffer(name, tensor, persistent=False)

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The rounded weight (out, in)."""
        return _weight(self._held, self._shape, dtype)

    def forward(self, x: Tensor) -> Tensor:
        kind, dtype = x.device.type, x.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        out: Tensor = _Product.apply(x.to(dtype), self._shape, *self._held)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias.to(dtype)

    @property
    def _shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    @property
    def _held(self) -> tuple[Tensor, ...]:
        return (
            self.codes,
            self.scale_codes,
            self.scale_scales,
            self.mean_scale,
            self.scale_levels,
        )


def _weight(held: tuple[Tensor, ...], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """W of what NF4Linear._held gives; the operations are those that torch.compile knows."""
    codes, scale_codes, scale_scales, mean_scale, scale_levels = held
    ops = torch.ops.bitsandbytes
    scales = ops.dequantize_blockwise(
        scale_codes, scale_scales, scale_levels, SCALE_BLOCK, torch.float32
    )
    return ops.dequantize_4bit(codes, scales + mean_scale, BLOCK, "nf4", shape, dtype)  # type: ignore[no-any-return]


class _Product(torch.autograd.Function):
    """x W^T, of which the backward pass keeps W in 4 bits only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, int], *held: Tensor) -> Tensor:
        ctx.save_for_backward(*held)
        ctx.shape = shape
        return F.linear(x, _weight(held, shape, x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight = _weight(ctx.saved_tensors, ctx.shape, grad.dtype)
        return grad @ weight, *[None] * 6


def in_nf4(model: Decoder, *, empty: bool = False) -> None:
    """Put an NF4Linear in the place of each projection of the layers; empty: without weights yet,
    of a model that is still to be read."""
    for parent in list(model.layers.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                quantised = NF4Linear(child)
                if not empty:
                    quantised.quantise(child.weight)
                setattr(parent, name, quantised)


def weight_count(model: nn.Module) -> int:
    """Weights of a model, whatever they are held in."""
    quantised = sum(one.size for one in model.modules() if isinstance(one, NF4Linear))
    return quantised + sum(parameter.numel() for parameter in model.parameters())


def held_bytes(model: nn.Module) -> int:
    """Bytes that a model's weights take on this rank."""
    quantised = [one for one in model.modules() if isinstance(one, NF4Linear)]
    return sum(to_local(parameter).nbytes for parameter in model.parameters()) + sum(
        buffer.nbytes for one in quantised for buffer in one.buffers(recurse=False)
    )
