"""What a training will take of a device's memory, before anything is loaded, and which settings fit
where it does not."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch

from simple_llama.data.batches import Indices, balanced_max_tokens, micro_batches
from simple_llama.data.tokens import Tokens
from simple_llama.errors import InputError
from simple_llama.model import packing
from simple_llama.model.checkpoint import is_exact_in_bf16, load_config
from simple_llama.model.config import ModelConfig
from simple_llama.model.device import device_memory, uses_bf16
from simple_llama.model.quantisation import INSTALL, has_library
from simple_llama.params.train import TrainParams
from simple_llama.training.fitting import fitting
from simple_llama.training.gradients import packs
from simple_llama.training.loop import plan_training
from simple_llama.training.memory import Footprint, Load, Shape, footprint, loads_of
from simple_llama.training.preflight import longest_step

SHARES = {"cpu": 0.7}
"""Of what is free that tensors may take: malloc holds 10 to 40% more than a CPU's tensors are."""
SHARE = 0.9
"""Of a GPU's: the rest is for what PyTorch needs beside them, and for what an estimate is off."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device, or one that is imagined."""

    name: str
    kind: str
    """cpu, cuda or mps."""
    half: bool
    """Whether products are computed in bfloat16."""
    varlen: bool
    """Whether it has PyTorch's variable-length attention for heads that are not too wide."""
    free: int | None
    """Bytes; None: not told."""
    total: int | None

    @classmethod
    def real(cls, device: torch.device, params: TrainParams) -> "Device":
        free, total = device_memory(device) or (None, None)
        return cls(
            name=str(device),
            kind=device.type,
            half=uses_bf16(device, params.precision),
            varlen=packing.has_varlen_kernel(device, 0),
            free=free,
            total=total,
        )._shared(params)

    @classmethod
    def imagined(cls, memory: int, params: TrainParams) -> "Device":
        """One with so much memory: a GPU that computes in bfloat16, unless params name a CPU."""
        kind = "cuda" if params.device == "auto" else params.device.partition(":")[0]
        half = kind == "cuda" and params.precision != "fp32"
        if kind != "cuda":
            half = uses_bf16(torch.device(kind), params.precision)
        return cls(
            name=f"such a device ({kind})",
            kind=kind,
            half=half,
            varlen=kind == "cuda",
            free=memory,
            total=memory,
        )._shared(params)

    def _shared(self, params: TrainParams) -> "Device":
        """What each process has of it: as many as num_devices says compute on one CPU."""
        if self.kind != "cpu" or params.num_devices in (1, "auto"):
            return self
        processes = int(params.num_devices)
        free, total = (None if x is None else x // processes for x in (self.free, self.total))
        name = f"{self.name} for each of {processes} processes"
        return replace(self, name=name, free=free, total=total)

    def holds(self, peak: int) -> bool:
        """Whether tensors of so many bytes fit, as far as that is known."""
        return self.free is None or peak <= self.free * self.share

    @property
    def share(self) -> float:
        """Of what is free that tensors may take."""
        return SHARES.get(self.kind, SHARE)


def packs_on(device: Device, config: ModelConfig, params: TrainParams) -> bool:
    """Whether micro-batches are packed there."""
    wide = packing.kernel_width(config) > packing.MAX_HEAD_DIM
    varlen = device.varlen and not wide
    return packs(config, params, device.kind, half=device.half, varlen=varlen)


def shape_of(base: str, vocab_size: int) -> Shape:
    """Of a base model with an embedding for each of vocab_size ids. Raises InputError."""
    config = load_config(base)
    grown = replace(config, vocab_size=max(config.vocab_size, vocab_size))
    return Shape(grown, exact_in_bf16=is_exact_in_bf16(base))


class Estimate:
    """Of a training on some tokens. What it takes is that of the first epoch's longest step."""

    def __init__(
        self,
        shape: Shape,
        params: TrainParams,
        tokens: Tokens,
        device: Device,
        ranks: int = 1,
        *,
        check: Callable[[TrainParams], None] = lambda params: None,
    ) -> None:
        """check: raises InputError where the training would not accept params."""
        self._check = check
        self.shape, self.params, self.device = shape, params, device
        self.tokens, self.ranks = tokens, ranks
        plan = plan_training(len(tokens), params)
        self.examples: Indices = plan.examples_at(longest_step(plan, tokens.lengths))
        self.longest = int(tokens.lengths[self.examples].max())
        self._loads = cache(self._computed)
        self.footprint = self.of(params)

    def of(self, params: TrainParams) -> Footprint:
        """With these params."""
        return footprint(
            self.shape,
            params,
            self._loads(params.tokens_at_once),
            self.device.kind,
            half=self.device.half,
            packed=self.packed,
            shards=self.ranks if params.shard == "full" else 1,
        )

    @property
    def packed(self) -> bool:
        return packs_on(self.device, self.shape.config, self.params)

    def _computed(self, tokens_at_once: int) -> list[Load]:
        pad_to = None if self.params.dynamic_padding else self.params.max_seq_len
        lengths = self.tokens.lengths[self.examples]
        batches = micro_batches(
            self.tokens,
            self.examples,
            max_tokens=balanced_max_tokens(lengths, tokens_at_once, pad_to, self.ranks),
            pad_id=0,
            pad_to=pad_to,
            packing=self.packed,
        )
        return loads_of(list(batches), self.ranks)

    @property
    def fits(self) -> bool:
        return self.device.holds(self.footprint.peak)

    def changes(self) -> str:
        """'activation_checkpointing: blocks and micro_batch_tokens: 512', with which it fits."""

        def fits(params: TrainParams) -> bool:
            try:
                self._check(params)
            except InputError:
                return False
            return self.device.holds(self.of(params).peak)

        found = fitting(self.params, fits, self.longest)
        if found is None:
            return "no setting tried fits"
        said = "it fits with " + " and ".join(f"{key}: {value}" for key, value in found.items())
        if found.get("lora_base") == "nf4" and not has_library():
            said += f" (after {INSTALL})"
        return said

    def verdict(self) -> str:
        """'at most 12.1 GB of tensors at once, of 22.1 GB free on cpu', and what would fit."""
        line = f"at most {size(self.footprint.peak)} of tensors at once"
        if self.device.free is None:
            return line
        line += f", of {size(self.device.free)} free on {self.device.name}"
        if self.fits:
            return line
        if self.footprint.peak <= self.device.free:
            line += f", {self.device.share:.0%} of which tensors can take"
        return f"{line}: {self.changes()}"

    def table(self) -> Iterator[str]:
        found, shape = self.footprint, self.shape
        load = found.load
        rows = {
            "weights": (found.weights, f"{millions(shape.total)} of the base"),
            "gradients": (found.gradients, f"of {millions(shape.trained(self.params))} trained"),
            "moments": (found.moments, f"of AdamW, optimizer_state: {self.params.optimizer_state}"),
            "activations": (
                found.activations,
                f"of {load.tokens:,} tokens at once, {'packed' if self.packed else 'padded'}, "
                f"activation_checkpointing: {self.params.activation_checkpointing}",
            ),
            "logits": (found.logits, f"of {load.supervised:,} supervised tokens, and the loss"),
        }
        for name, (taken, why) in rows.items():
            yield f"  {name:<12}{size(taken):>9}  {why}"
        yield "  not all of it is held at the same time"

    @property
    def exceeds(self) -> bool:
        """Whether weights and moments alone are more than the device has."""
        return self.device.total is not None and self.footprint.least > self.device.total

    def check(self) -> str | None:
        """A note where it may not fit. Raises InputError where it cannot, as it exceeds the
        device."""
        if self.exceeds:
            assert self.device.total is not None
            raise InputError(
                f"{self.device.name}: got {size(self.device.total)} of memory, wanted "
                f"{size(self.footprint.least)} for weights and moments alone: {self.changes()}"
            )
        return None if self.fits else f"note: the training may take {self.verdict()}"


def size(count: int) -> str:
    """'1.3 GB' of bytes."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count / 1e3:,.1f} kB"


def millions(count: int) -> str:
    """'0.689M' of weights."""
    return f"{count / 1e6:,.0f}M" if count >= 1e9 else f"{count / 1e6:.3g}M"
