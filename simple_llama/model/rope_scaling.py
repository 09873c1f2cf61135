"""How rotary positions are stretched beyond the context of pretraining, under the names of
config.json."""

import math
from dataclasses import dataclass

from simple_llama.errors import InputError
from simple_llama.model.checks import (
    ConfigDict,
    check_positive,
    check_sizes,
    is_positive,
    positive,
    positive_integer,
    required_key,
)

ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Rotary positions divided by a factor (https://arxiv.org/abs/2306.15595)."""

    factor: float

    def __post_init__(self) -> None:
        check_positive(self, "factor")


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Slow rotations divided by a factor, fast ones kept, those between mixed (Llama 3.1)."""

    factor: float
    low_freq_factor: float
    """Rotations of fewer turns than this within the original context are slow ..."""
    high_freq_factor: float
    """... and those of more turns than this are fast."""
    original_max_position_embeddings: int
    """The context of pretraining before it was extended, in tokens."""

    def __post_init__(self) -> None:
        check_positive(self, "factor", "low_freq_factor", "high_freq_factor")
        check_sizes(self, "original_max_position_embeddings")
        if self.low_freq_factor >= self.high_freq_factor:
            raise InputError(
                f"low_freq_factor: got {self.low_freq_factor}, "
                f"wanted less than high_freq_factor ({self.high_freq_factor})"
            )


@dataclass(frozen=True, kw_only=True)
class LongRoPE:
    """Each pair slowed down by a factor of its own, short_factor up to the original context and
    long_factor beyond, which is not computed here (https://arxiv.org/abs/2402.13753)."""

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position_embeddings: int
    attention_factor: float
    """What cos and sin are multiplied by."""

    def __post_init__(self) -> None:
        for name in ("short_factor", "long_factor"):
            factors = getattr(self, name)
            if type(factors) not in (list, tuple) or not all(is_positive(one) for one in factors):
                raise InputError(f"{name}: got {factors!r:.80}, wanted a list of positive numbers")
            object.__setattr__(self, name, tuple(factors))
        check_sizes(self, "original_max_position_embeddings")
        check_positive(self, "attention_factor")


@dataclass(frozen=True, kw_only=True)
class YaRN:
    """Slow rotations divided by a factor, fast ones kept, those between mixed by their number
    (https://arxiv.org/abs/2309.00071)."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    """Rotations of more turns than this within the original context are fast ..."""
    beta_slow: float
    """... and those of fewer turns than this are slow."""
    truncate: bool
    """Whether the range of pairs that are mixed is rounded to whole pairs."""
    attention_factor: float
    """What cos and sin are multiplied by."""

    def __post_init__(self) -> None:
        check_positive(self, "factor", "beta_fast", "beta_slow", "attention_factor")
        check_sizes(self, "original_max_position_embeddings")
        if type(self.truncate) is not bool:
            raise InputError(f"truncate: got {self.truncate!r:.80}, wanted true or false")


RopeScaling = LinearScaling | Llama3Scaling | LongRoPE | YaRN
ROPE_TYPES = {
    LinearScaling: "linear",
    Llama3Scaling: "llama3",
    LongRoPE: "longrope",
    YaRN: "yarn",
}


def read_scaling(kind: str | None, rope: ConfigDict, found: ConfigDict) -> RopeScaling | None:
    """Of a config.json and the rotary settings in it, of one of ROPE_TYPES or none.

    Raises InputError naming what is wrong.
    """
    if kind == "linear":
        return LinearScaling(factor=required_key(rope, "factor"))
    longest = found["max_position_embeddings"]
    original = found.get(ORIGINAL, rope.get(ORIGINAL, longest))
    if kind == "llama3":
        return Llama3Scaling(
            factor=required_key(rope, "factor"),
            low_freq_factor=required_key(rope, "low_freq_factor"),
            high_freq_factor=required_key(rope, "high_freq_factor"),
            original_max_position_embeddings=original,
        )
    if kind not in ("longrope", "yarn"):
        return None
    original = positive_integer({ORIGINAL: original}, ORIGINAL)
    sizes = {
        "factor": (required_key(rope, "factor") if kind == "yarn" else rope.get("factor")),
        "max_position_embeddings": longest,
    }
    if sizes["factor"] is None:
        sizes["factor"] = positive_integer(sizes, "max_position_embeddings") / original
    factor = positive(sizes, "factor")
    attention_factor = rope.get("attention_factor")
    if kind == "yarn":
        return YaRN(
            factor=factor,
            original_max_position_embeddings=original,
            beta_fast=rope.get("beta_fast") or 32,
            beta_slow=rope.get("beta_slow") or 1,
            truncate=rope.get("truncate", True),
            attention_factor=_of_yarn(factor, rope)
            if attention_factor is None
            else attention_factor,
        )
    return LongRoPE(
        short_factor=required_key(rope, "short_factor"),
        long_factor=required_key(rope, "long_factor"),
        original_max_position_embeddings=original,
        attention_factor=_of_longrope(factor, original)
        if attention_factor is None
        else attention_factor,
    )


def _of_longrope(factor: float, original: int) -> float:
    """The attention_factor where config.json has none."""
    if factor <= 1:
        return 1.0
    if original < 2:
        raise InputError(f"{ORIGINAL}: got {original}, wanted an integer above 1")
    return math.sqrt(1 + math.log(factor) / math.log(original))


def _of_yarn(factor: float, rope: ConfigDict) -> float:
    """The attention_factor where config.json has none."""

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return scale(positive(rope, "mscale")) / scale(positive(rope, "mscale_all_dim"))
    return scale(1)
