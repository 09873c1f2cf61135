"""What the decoder's forward pass keeps for its backward pass, in bytes, read off its operations:
which tensors each saves, in which type. Under autocast projections compute in 2 bytes a number,
while norms and the residual stream are of 4.

Shapes as in attention.py; I the MLP's inner width, N tokens of a micro-batch, padding included.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from simple_llama.model import kernels
from simple_llama.model.blocks import BLOCK_QUERIES
from simple_llama.model.config import ModelConfig
from simple_llama.model.recomputed import block_scores

BYTES_OF_SCORE = 24
"""In a block of the plain formula's backward pass, in its types, at once."""


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How a model is computed."""

    device: str
    """cpu, cuda or mps."""
    half: bool
    """Whether products are computed in bfloat16."""
    packed: bool
    fused: bool
    """By PyTorch's fused attention."""
    dropout: float
    stream_number: int
    """Bytes of a number of the embedding, and so of the residual stream."""
    targets: frozenset[str] | None = None
    """The projections that have an adapter, all else being frozen; None: all is trained."""
    rank: int = 0
    """Of the adapters."""

    @property
    def number(self) -> int:
        """Bytes of a number that a projection gives."""
        return 2 if self.half else 4

    def keeps_input(self, *projections: str) -> bool:
        """Whether any of the projections needs its input for a gradient."""
        return self.targets is None or not self.targets.isdisjoint(projections)


def layer_bytes(config: ModelConfig, layer: int, compute: Compute, lengths: Sequence[int]) -> int:
    """Of one layer that computes examples of these lengths, padding included: packed, the row's is
    an example more."""
    tokens = sum(lengths)
    per_token = _norms(config, compute) + _mlp(config, compute) + _adapters(config, compute)
    if compute.dropout:
        per_token += 2 * config.hidden_size * (compute.number if compute.device == "cpu" else 1)
    return tokens * per_token + _attention(config, layer, compute, lengths)


def stream_bytes(config: ModelConfig, compute: Compute) -> int:
    """Of a token in the residual stream: what recomputed blocks keep of it."""
    return config.hidden_size * compute.stream_number


def angle_bytes(config: ModelConfig, compute: Compute, lengths: Sequence[int]) -> int:
    """Of ids and of the angles that all layers share."""
    each = 2 * 4 * config.rotary_dim * (2 if config.rope_local_theta else 1)
    return each * _positions(compute, lengths) + 8 * sum(lengths)


def norm_bytes(config: ModelConfig, compute: Compute) -> int:
    """Of a token: what the last norm keeps and gives."""
    return (4 + compute.number) * config.hidden_size + 4


def _positions(compute: Compute, lengths: Sequence[int]) -> int:
    """Whose angles are computed: the rows of a padded micro-batch share theirs."""
    return sum(lengths) if compute.packed else max(lengths)


def _norms(config: ModelConfig, compute: Compute) -> int:
    """Of a token: what norms keep in float32, and what of theirs the projections after them."""
    width, number = config.hidden_size, compute.number
    held = 4 * width + 4
    if compute.device != "cpu" and not config.norm_offset:
        held = width * compute.stream_number + 4
    inputs = _inputs(config, compute)
    if config.norms == "before":
        return 2 * held + inputs * width * number
    after = 2 * (4 if compute.device == "cpu" else number) * width + 8
    if config.norms == "both":
        return 2 * held + after + inputs * width * number
    # the residual stream itself enters the projections, each of which casts it
    copies = inputs * number if compute.number == compute.stream_number else 0
    if compute.half and compute.stream_number == 4:
        fused = config.fused_projections
        copies = number * ((1 if fused else 3) + (1 if fused else 2))
    return after + copies * width


def _inputs(config: ModelConfig, compute: Compute) -> int:
    """Whether attention's and whether the MLP's first projections keep their input: 0 to 2."""
    return compute.keeps_input("q_proj", "k_proj", "v_proj", "qkv_proj") + compute.keeps_input(
        "gate_proj", "up_proj", "gate_up_proj"
    )


def _mlp(config: ModelConfig, compute: Compute) -> int:
    """Of a token: the gate, what the activation makes of it, up, and their product."""
    kept = 3 + compute.keeps_input("down_proj")
    return kept * config.intermediate_size * compute.number


def _adapters(config: ModelConfig, compute: Compute) -> int:
    """Of a token: what lies between the two matrices."""
    return 0 if compute.targets is None else len(compute.targets) * compute.rank * compute.number


def _attention(config: ModelConfig, layer: int, compute: Compute, lengths: Sequence[int]) -> int:
    number, tokens = compute.number, sum(lengths)
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    width = config.head_dim
    wide = config.mla.v_head_dim if config.mla else width
    kept = fixed = 0
    if config.qk_norm:
        kept += (heads + groups) * (4 * width + 4)
    if compute.half and config.uses_rope(layer):  # cos and sin in their type, for q and again for k
        fixed += 4 * config.rotary_dim * number * _positions(compute, lengths)
    if compute.keeps_input("o_proj"):
        kept += heads * wide * number
    capped = config.attn_logit_softcapping is not None
    if capped or not compute.fused:  # weights, in float32 and in their type, tanh and the mask
        each = 4 + (2 if compute.half else 0) + (number if capped else 0)
        area = sum(_kept_pairs(length, config.window(layer)) for length in lengths)
        fixed += area * (1 + heads * each)
        if compute.packed and 1 in lengths and heads > groups:
            kept += groups * (width + wide) * number  # a single token needs no copies of them
        return fixed + tokens * (kept + heads * (2 * width + wide) * number)
    if compute.device == "cpu" and compute.packed and _is_short(config, layer, lengths):
        kept += (heads * width + groups * (width + wide)) * number
        return fixed + tokens * kept + heads * kernels.kept_weights(lengths) * number
    # queries, keys and values, a sum for each query, and the output where it is not o_proj's input
    copies = groups if compute.device != "cpu" and compute.packed else heads
    kept += (heads + 2 * copies) * max(width, wide) * number
    kept += 4 * heads + (heads * wide * number if compute.device == "cpu" else 0)
    return fixed + tokens * kept


def _kept_pairs(length: int, window: int | None) -> int:
    """Queries and keys of an example whose weights by the plain formula are kept."""
    if length > kernels.MAX_KEPT_KEYS:
        return 0  # computed again
    return sum(
        (min(first + BLOCK_QUERIES, length) - first)
        * (min(first + BLOCK_QUERIES, length) - (max(0, first - window + 1) if window else 0))
        for first in range(0, length, BLOCK_QUERIES)
    )


def block_bytes(config: ModelConfig, compute: Compute, lengths: Sequence[int]) -> int:
    """What the backward pass of the plain formula takes for a block of scores, where they are
    computed again."""
    longest = max(lengths)
    capped = config.attn_logit_softcapping is not None
    if longest <= kernels.MAX_KEPT_KEYS or not (capped or not compute.fused):
        return 0
    heads = config.num_attention_heads * (1 if compute.packed else len(lengths))
    return BYTES_OF_SCORE * block_scores(compute.device, heads, longest)


def _is_short(config: ModelConfig, layer: int, lengths: Sequence[int]) -> bool:
    """Whether kernels.packed_attention keeps the weights of these packed examples."""
    window = config.window(layer)
    hides = window is not None and window < max(lengths)
    return not hides and max(lengths) <= kernels.MAX_KEPT_KEYS
