"""Rotary position embeddings (RoPE): the frequencies of a head's pairs, and their rotation.

Shapes as in attention.py; R is the rotated width of a head.
"""

import math

import torch
from torch import Tensor

from simple_llama.model.config import ModelConfig
from simple_llama.model.rope_scaling import LinearScaling, Llama3Scaling, LongRoPE, YaRN


def rotary_frequencies(config: ModelConfig, *, local: bool = False) -> Tensor:
    """Radians per position of each pair of a head, (R/2,) float32, slowed down by rope_scaling;
    local: in layers with a window, which have a base of their own.

    On the CPU, whatever the default device: they are data, not weights to be filled in later.
    """
    exponents = torch.arange(0, config.rotary_dim, 2, device="cpu").float() / config.rotary_dim
    if local:
        assert config.rope_local_theta is not None
        return 1.0 / config.rope_local_theta**exponents
    frequencies = 1.0 / config.rope_theta**exponents
    match config.rope_scaling:
        case LinearScaling(factor=factor):
            return frequencies / factor
        case Llama3Scaling() as scaling:
            return _llama3(frequencies, scaling)
        case LongRoPE(short_factor=factors):
            return frequencies / torch.tensor(factors, device="cpu")
        case YaRN() as scaling:
            return _yarn(frequencies, scaling, config.rope_theta)
    return frequencies


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """By the turns that a pair makes within the original context:

    0 ... low_freq_factor ... high_freq_factor ...
    1/factor |  interpolated  | unchanged
    """
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = frequencies * scaling.original_max_position_embeddings / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def _yarn(frequencies: Tensor, scaling: YaRN, theta: float) -> Tensor:
    """By the number of a pair, as `transformers` has it: its turns within the original context
    decide, rounded outward unless `truncate` is false:

    ... the pair of beta_fast turns ... that of beta_slow turns ...
    unchanged     |          interpolated           | 1/factor
    """
    width = 2 * len(frequencies)

    def pair(turns: float) -> float:
        length = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
        return width * math.log(length) / (2 * math.log(theta))

    low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001
    pairs = torch.arange(width // 2, device="cpu")
    slowed = ((pairs - low) / (high - low)).clamp(0, 1)
    return slowed * frequencies / scaling.factor + (1 - slowed) * frequencies


def rotary_angles(
    positions: Tensor, frequencies: Tensor, factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """cos of the rotation at each position (B, T) and sin, negative in the lower half, times
    factor, for all heads: (B, 1, T, R) float32.

    The halves of a head rotate together, (i, i + R/2), as in Hugging Face's Llama layout
    (RoPE: https://arxiv.org/abs/2104.09864).
    """
    angles = positions.float()[:, None, :, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    if factor != 1:
        cos, sin = cos * factor, sin * factor
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, heads, T, R) turned by angles that broadcast to it, in x's own type."""
    if x.device.type == "cpu":
        x = x.contiguous()  # so that the angles, the same for all heads, meet long rows
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * cos.to(x.dtype), swapped, sin.to(x.dtype))
