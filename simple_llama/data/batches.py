"""Which examples each optimizer step sees, and how a step is split into micro-batches.

The order is a pure function of (seed, epoch). The split is an execution detail: the loss of a step
is a sum over its supervised tokens divided by their number, whatever the micro-batches and
whichever of several processes computes them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from simple_llama.data.tokens import Tokens

Indices = NDArray[np.int64]

PAD_MULTIPLE = 64
"""Packed rows, and on a CPU the rows of logits, are padded to a multiple of this: matrix products
are faster where few shapes occur."""

IGNORE_INDEX = -100
"""The target that PyTorch's cross-entropy leaves out."""


@lru_cache(maxsize=2)
def epoch_order(examples: int, seed: int, epoch: int) -> Indices:
    """A permutation of the examples, another one each epoch (0, 1, ...)."""
    return np.random.default_rng((seed, epoch)).permutation(examples)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The optimizer steps of a training. Each epoch has every example once, in steps of
    `examples_per_step`; the last step of an epoch may be smaller."""

    num_examples: int
    examples_per_step: int
    seed: int
    epochs: int
    max_steps: int
    """0 means no limit."""

    @cached_property
    def steps_per_epoch(self) -> int:
        return -(-self.num_examples // self.examples_per_step)

    @cached_property
    def steps(self) -> int:
        steps = self.steps_per_epoch * self.epochs
        return min(steps, self.max_steps) if self.max_steps else steps

    def examples_at(self, step: int) -> Indices:
        """The examples of a step (0, 1, ...)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = epoch_order(self.num_examples, self.seed, epoch)
        return order[place * self.examples_per_step : (place + 1) * self.examples_per_step]

    def examples_seen(self, steps: int) -> int:
        """How many different examples the first steps hold."""
        return min(steps * self.examples_per_step, self.num_examples)

    def ends_epoch(self, step: int) -> bool:
        return (step + 1) % self.steps_per_epoch == 0 or step + 1 == self.steps


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One of the processes that share the micro-batches of each step."""

    rank: int = 0
    world_size: int = 1
    sharded: bool = False
    """Weights are sharded (FSDP): all ranks compute equally many micro-batches, because each
    forward pass gathers weights from all of them."""

    def assigned(self, groups: list[Indices], costs: Sequence[int]) -> list[Indices]:
        """The groups that this rank computes.

        In order of decreasing cost, each group goes to the rank with the lowest cost so far. If
        weights are sharded, a rank with fewer groups than others also gets empty ones.
        """
        if self.world_size == 1:
            return groups
        loads = [0] * self.world_size
        shares: list[list[Indices]] = [[] for _ in loads]
        for place in sorted(range(len(groups)), key=lambda place: -costs[place]):
            least = loads.index(min(loads))
            shares[least].append(groups[place])
            loads[least] += costs[place]
        mine, most = shares[self.rank], max(map(len, shares))
        idle = most - len(mine) if self.sharded else 0
        return mine + [np.zeros(0, np.int64)] * idle


ONLY_RANK = Rank()


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """E examples computed at once: B rows of T inputs, S supervised targets in total.

        example   <SOT> ... <SOA> 4 2 <EOA>       mask    . ... . x x x
        inputs    <SOT> ... <SOA> 4 2             targets     4 2 <EOA>
        positions               ^ ^ ^             of the inputs that predict them

    Either each example is a row with padding on the right, which causal attention hides from its
    tokens. Or the examples are packed end to end in one row, padded to a multiple of PAD_MULTIPLE.
    """

    ids: Tensor
    """(B, T) int64 inputs."""
    positions: Tensor
    """(S,) int64: places in the flattened (B * T) inputs whose next token is supervised."""
    targets: Tensor
    """(S,) int64: the next token at each position."""
    example_index: Indices
    """(S,): index into `examples` of each target's example."""
    examples: Indices
    """(E,): indices of the examples in the split."""
    longest: int
    """Number of inputs of the longest example, or of a packed row's padding if that is longer."""
    offsets: Tensor | None
    """(E + 2,) int32: where in the packed row each example and the padding begin, then T. None if
    the examples are not packed."""

    def to(self, device: torch.device) -> "MicroBatch":
        return replace(
            self,
            ids=_copy_async(self.ids, device),
            positions=_copy_async(self.positions, device),
            targets=_copy_async(self.targets, device),
            offsets=None if self.offsets is None else _copy_async(self.offsets, device),
        )

    def in_fixed_shape(self, examples: int, longest: int, pad_id: int) -> "MicroBatch":
        """The same packed examples in one of a few fixed shapes.

        Tokens and targets are padded to a `bucket_size`, targets with IGNORE_INDEX. The offsets are
        extended to `examples` examples by empty ones at the end. longest: the maximum number of
        tokens of an example.
        """
        assert self.offsets is not None, "packed"
        width, targets = bucket_size(self.ids.shape[1]), bucket_size(len(self.targets))
        more = targets - len(self.targets)
        return replace(
            self,
            ids=F.pad(self.ids, (0, width - self.ids.shape[1]), value=pad_id),
            positions=F.pad(self.positions, (0, more)),
            targets=F.pad(self.targets, (0, more), value=IGNORE_INDEX),
            offsets=F.pad(self.offsets[:-1], (0, examples + 3 - len(self.offsets)), value=width),
            # padding counts as an example too, shorter than what rounding adds
            longest=max(longest, width // 8 + PAD_MULTIPLE),
        )


def bucket_size(count: int) -> int:
    """`count` rounded up to a multiple of PAD_MULTIPLE and of 1/8 of the next lower power of two.

    So there are eight sizes between two powers of two, and padding adds at most 1/8."""
    grain = max(PAD_MULTIPLE, (1 << max(1, count - 1).bit_length() >> 1) // 8)
    return max(1, -(-count // grain)) * grain


def _copy_async(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy without waiting for the copy to end. CUDA can do so only from pinned memory."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def batch_by_size(
    lengths: Indices,
    examples: Indices,
    max_tokens: int,
    pad_to: int | None,
    *,
    packing: bool = False,
) -> list[Indices]:
    """Split examples into micro-batches of at most `max_tokens` tokens, padding included; a longer
    example is a micro-batch of its own.

    Examples are sorted by length, longest first. So there is little padding, and if memory does not
    suffice, the first micro-batch fails. lengths: of all examples of the split. pad_to: pads each
    example to that many tokens. packing: no example is padded.
    """
    order = examples[np.argsort(-lengths[examples], kind="stable")]
    ends = np.cumsum(lengths[order])
    batches = []
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        if packing:
            most = int(ends[start]) - longest + max_tokens
            size = int(np.searchsorted(ends, most, side="right")) - start
        else:
            size = max_tokens // max(longest, pad_to or 0)
        size = max(1, size)
        batches.append(order[start : start + size])
        start += size
    return batches


def balanced_max_tokens(lengths: Indices, max_tokens: int, pad_to: int | None, ranks: int) -> int:
    """The largest limit, at most `max_tokens`, for which every rank gets about the same number of
    micro-batches of about the same size from examples of these lengths."""
    if ranks == 1:
        return max_tokens
    total = int(np.maximum(lengths, pad_to or 0).sum())
    rounds = -(-total // (max_tokens * ranks))
    return -(-total // (rounds * ranks))


def count_supervised(tokens: Tokens, examples: Indices) -> int:
    """Number of targets of the loss in these examples."""
    spans = ((int(tokens.starts[i]) + 1, int(tokens.starts[i + 1])) for i in examples)
    return sum(int(np.count_nonzero(tokens.mask[first:end])) for first, end in spans)


def collate(
    tokens: Tokens,
    examples: Indices,
    pad_id: int,
    pad_to: int | None,
    *,
    packing: bool = False,
) -> MicroBatch:
    """Make one micro-batch of examples, padded or packed. Without examples it is padding alone,
    without targets."""
    lengths = tokens.lengths[examples] - 1  # the last token is never an input
    longest = int(lengths.max(initial=1))
    offsets = None
    if packing:
        begins = np.cumsum(lengths) - lengths
        end = int(lengths.sum())
        width = max(PAD_MULTIPLE, -(-end // PAD_MULTIPLE) * PAD_MULTIPLE)
        longest = max(longest, width - end)
        offsets = torch.from_numpy(np.append(begins, (end, width)).astype(np.int32))
        shape = (1, width)
    else:
        width = max(longest, (pad_to or 0) - 1) if len(examples) else 1
        begins = np.arange(len(examples)) * width
        shape = (max(1, len(examples)), width)
    ids = np.full(shape, pad_id, np.int64)
    places, rows, targets = ([np.zeros(0, np.int64)] for _ in range(3))
    for row, (example, begin, length) in enumerate(zip(examples, begins, lengths, strict=True)):
        start = tokens.starts[example]
        own = tokens.ids[start : start + length + 1].astype(np.int64)
        supervised = np.flatnonzero(tokens.mask[start + 1 : start + length + 1])
        ids.flat[begin : begin + length] = own[:-1]
        places.append(begin + supervised)
        targets.append(own[1:][supervised])
        rows.append(np.full(len(supervised), row))
    return MicroBatch(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(np.concatenate(places)),
        targets=torch.from_numpy(np.concatenate(targets)),
        example_index=np.concatenate(rows),
        examples=examples,
        longest=longest,
        offsets=offsets,
    )


def micro_batches(
    tokens: Tokens,
    examples: Indices,
    *,
    max_tokens: int,
    pad_id: int,
    pad_to: int | None = None,
    packing: bool = False,
    rank: Rank = ONLY_RANK,
) -> Iterator[MicroBatch]:
    """This rank's micro-batches of the examples, padded or packed."""
    lengths = tokens.lengths
    groups = batch_by_size(lengths, examples, max_tokens, pad_to, packing=packing)
    costs = [
        int(lengths[group].sum()) if packing else len(group) * max(lengths[group[0]], pad_to or 0)
        for group in groups
    ]
    for group in rank.assigned(groups, costs):
        yield collate(tokens, group, pad_id, pad_to, packing=packing)


def split_prompt_and_reply(tokens: Tokens, example: int) -> tuple[list[int], list[int]]:
    """The token ids of an example's inference prompt, and of its last reply with the stop token."""
    span = slice(tokens.starts[example], tokens.starts[example + 1])
    ids, mask = tokens.ids[span], tokens.mask[span]
    start = int(np.flatnonzero(mask == 0)[-1]) + 1
    return ids[:start].tolist(), ids[start:].tolist()


def evenly_spaced(examples: int, wanted: int) -> Indices:
    """`wanted` indices, evenly spaced over range(examples); all of them if there are fewer."""
    return np.unique(np.linspace(0, examples - 1, min(examples, wanted)).round().astype(np.int64))
