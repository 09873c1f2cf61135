"""Stochastic rounding of float32 to 16 or 8 bits.

Rounded to nearest, an update below half the distance between two representable numbers is lost each
time. Rounded up or down at random, with probabilities that keep the mean, updates add up
(https://arxiv.org/abs/2010.06192).
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

BLOCK_SIZE = 256
"""Numbers that share a scale in 8 bits."""
DECADES = 7


def stochastic_round_bf16(x: Tensor, generator: Generator) -> Tensor:
    """Float32 x to bfloat16: random bits are added below the last bit that is kept, then the bits
    below it are cut off. Numbers that bfloat16 holds exactly stay."""
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
    words.random_(-(2**63), None, generator=generator)
    noise = words.view(torch.int16)[: x.numel()].view(x.shape).int() & 0xFFFF
    bits = x.contiguous().view(torch.int32)
    rounded = ((bits + noise) & ~0xFFFF).view(torch.float32)
    # the noise would turn an infinity into NaN
    return torch.where(x.isfinite(), rounded, x).bfloat16()


@cache
def dynamic_map(signed: bool, device: torch.device) -> Tensor:
    """The 256 numbers that 8 bits stand for, sorted, up to 1: a decade of magnitudes has twice as
    many as the one below (dynamic tree quantisation, https://arxiv.org/abs/2110.02861)."""
    found = [0.0, 1.0]
    for decade in range(DECADES):
        count = 2 ** (decade + (0 if signed else 1))
        width = 0.9 / count
        means = (0.1 + width * (index + 0.5) for index in range(count))
        found += [10.0 ** (decade - DECADES + 1) * mean for mean in means]
    if signed:  # without the smallest, which makes room for -1
        found += [-value for value in sorted(found)[2:]]
    return torch.tensor(sorted(found), device=device)


def quantize_8bit(x: Tensor, signed: bool, generator: Generator) -> tuple[Tensor, Tensor]:
    """Float32 x (N,) as codes, uint8 (N,), and a scale for each block of BLOCK_SIZE, float32;
    rounded stochastically to one of the two nearest values. Where not signed, x is not negative."""
    table = dynamic_map(signed, x.device)
    blocks = F.pad(x, (0, -len(x) % BLOCK_SIZE)).view(-1, BLOCK_SIZE)
    scales = blocks.abs().amax(1)
    unit = (blocks / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).view(-1)
    below = first_not_less(unit, signed).clamp_(1, len(table) - 1).sub_(1)
    low = table.index_select(0, below)
    share = unit.sub_(low).div_(table.diff().index_select(0, below))
    noise = torch.rand(unit.shape, device=x.device, generator=generator)
    codes = below.add_(noise < share)
    return codes.to(torch.uint8)[: len(x)], scales


def first_not_less(unit: Tensor, signed: bool) -> Tensor:
    """What torch.searchsorted(dynamic_map, unit) gives of float32 (N,), as int32. That is most of
    quantize_8bit's time on a CPU; the upper half of a float's bits leaves two candidates."""
    table = dynamic_map(signed, unit.device)
    upper = unit.view(torch.int32) >> 16
    first = _candidates(signed, unit.device).index_select(0, upper.add_(2**15))
    candidate = table.index_select(0, first.clamp_max(len(table) - 1))
    return first.add_(candidate < unit)


@cache
def _candidates(signed: bool, device: torch.device) -> Tensor:
    """For the upper 16 bits of a float32, as an integer from -2^15 on, the first of the two places
    in dynamic_map, int32 (2^16,)."""
    upper = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
    # the least of all floats with these upper bits: of negative ones that of the largest magnitude
    least = torch.where(upper < 0, upper | 0xFFFF, upper).view(torch.float32)
    table = dynamic_map(signed, torch.device("cpu"))
    return torch.searchsorted(table, least, out_int32=True).to(device)


def dequantize_8bit(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """Float32 (N,) of what quantize_8bit gave."""
    units = dynamic_map(signed, codes.device)[codes.int()]
    blocks = F.pad(units, (0, -len(units) % BLOCK_SIZE)).view(-1, BLOCK_SIZE) * scales[:, None]
    return blocks.view(-1)[: len(units)]
