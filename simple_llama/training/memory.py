"""The memory that a training will take, from the model's shape, the params and the kind of device.
Nothing is loaded. benchmarks/bench_memory.py holds it against what trainings took.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from simple_llama.data.batches import MicroBatch
from simple_llama.model import kernels
from simple_llama.model.activations import (
    Compute,
    angle_bytes,
    block_bytes,
    layer_bytes,
    norm_bytes,
    stream_bytes,
)
from simple_llama.model.config import ModelConfig
from simple_llama.model.decoder import Decoder
from simple_llama.model.quantisation import BYTES_EACH
from simple_llama.params.train import TrainParams
from simple_llama.training.loss import MAX_LOGITS
from simple_llama.training.moments import MOMENTS
from simple_llama.training.optimizer import CHUNK_SIZE

UPDATED = {"fp32": 33, "bf16": 33, "8bit": 41}
"""Temporary bytes for each weight of a chunk that AdamW updates, by optimizer_state."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """A micro-batch of a step."""

    lengths: Sequence[int]
    """Of its examples, as they are computed: padded, all are as long as the longest; packed, the
    row's padding is one more."""
    supervised: int
    several: bool
    """Whether it follows another: then gradients of the ones before are held meanwhile."""

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


def loads_of(batches: Sequence[MicroBatch], ranks: int = 1) -> list[Load]:
    """Of a step's micro-batches, which so many ranks share: the largest of those that a rank
    computes first, and of the others."""
    if ranks > 1:  # as they are shared out
        batches = sorted(batches, key=lambda batch: -batch.ids.numel())
    parts = batches[:ranks], batches[ranks:]
    return [_load_of(part, several=bool(place)) for place, part in enumerate(parts) if part]


def _load_of(batches: Sequence[MicroBatch], *, several: bool) -> Load:
    largest = max(batches, key=lambda batch: batch.ids.numel())
    lengths = [largest.ids.shape[1]] * largest.ids.shape[0]
    if largest.offsets is not None:
        lengths = [length for length in largest.offsets.diff().tolist() if length]
    supervised = max(len(batch.targets) for batch in batches)
    return Load(lengths=lengths, supervised=supervised, several=several)


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes of tensors, by what they are for."""

    weights: int
    gradients: int
    moments: int
    activations: int
    """With copies of the weights in bfloat16, where products need them."""
    logits: int
    """And what the loss computes of them."""
    peak: int
    """At once: not all of the others are held at the same time."""
    load: Load
    """The micro-batch with the peak."""

    @property
    def least(self) -> int:
        """Without which no micro-batch, however small, is computed."""
        return self.weights + self.moments


class Shape:
    """A model's parameters, counted."""

    def __init__(self, config: ModelConfig, *, exact_in_bf16: bool) -> None:
        """exact_in_bf16: whether bfloat16 holds its weights exactly."""
        self.config = config
        self.exact_in_bf16 = exact_in_bf16
        with torch.device("meta"):
            model = Decoder(config)
        self.projections = [
            (name.rpartition(".")[2], module.out_features, module.in_features)
            for name, module in model.layers.named_modules()
            if isinstance(module, nn.Linear)
        ]
        """Of the layers: name, rows, columns."""
        self.matrices = sum(rows * columns for _, rows, columns in self.projections)
        self.tied = config.tie_word_embeddings
        self.rows = config.vocab_size * config.hidden_size
        """Numbers of the embedding, and of an output projection."""
        self.total = sum(p.numel() for p in model.parameters())
        self.small = self.total - self.matrices - self.rows * (1 if self.tied else 2)
        """Of norms and biases."""

    def adapters(self, params: TrainParams) -> int:
        """Numbers that adapters have."""
        return params.lora_rank * sum(
            rows + columns
            for name, rows, columns in self.projections
            if name in params.lora_projections
        )

    def trained(self, params: TrainParams) -> int:
        return self.adapters(params) if params.lora_rank else self.total


def footprint(
    shape: Shape,
    params: TrainParams,
    loads: Sequence[Load],
    device: str,
    *,
    half: bool,
    packed: bool,
    shards: int = 1,
) -> Footprint:
    """Of a training on a kind of device: cpu, cuda or mps. loads: as loads_of gives them.

    half: products are computed in bfloat16. shards: devices over which shard: full spreads
    weights, gradients and moments.
    """
    sums = (_Sum(shape, params, load, device, half=half, packed=packed) for load in loads)
    return max((one.footprint(shards) for one in sums), key=lambda found: found.peak)


class _Sum:
    """The terms. A step's peak is at one of four moments: at the loss, as the backward pass begins
    with the last layer, as it ends with the first one and the embedding, or in the update."""

    def __init__(
        self,
        shape: Shape,
        params: TrainParams,
        load: Load,
        device: str,
        *,
        half: bool,
        packed: bool,
    ) -> None:
        self.shape, self.params, self.load = shape, params, load
        self.config, self.device, self.half = shape.config, device, half
        self.adapted = params.lora_rank > 0
        self.blocks = params.activation_checkpointing == "blocks"
        self.held = 2 if params.weights == "bf16" else 4
        """Bytes of a number of a trained matrix, and of the embedding."""
        self.frozen = 2 if half and shape.exact_in_bf16 else 4
        """Of a frozen projection: of the output's, and of the layers' where they are not in nf4."""
        self.nf4 = self.adapted and params.lora_base == "nf4"
        names = {name for name, _, _ in shape.projections}
        self.compute = Compute(
            device=device,
            half=half,
            packed=packed,
            fused=params.use_flash_attention,
            dropout=params.dropout,
            stream_number=self.held,
            targets=frozenset(names & {*params.lora_projections}) if self.adapted else None,
            rank=params.lora_rank,
        )

    def footprint(self, shards: int) -> Footprint:
        weights, gradients, moments = (
            part // shards for part in (self._weights(), self._gradients(), self._moments())
        )
        before = gradients if self.load.several else 0
        logits = self._logits()
        kept = self._layers_kept + self._angles()
        beginning = before + kept + self._head_gradient() + self._passing()
        peak = max(
            before + self._at_loss() + logits,
            beginning,
            gradients + self._ending(),
            gradients + self._update(),
        )
        gathered = 0 if shards == 1 else self._gathered()
        return Footprint(
            weights=weights,
            gradients=gradients,
            moments=moments,
            activations=kept,
            logits=logits,
            peak=weights + moments + gathered + peak,
            load=self.load,
        )

    def _weights(self) -> int:
        shape = self.shape
        if not self.adapted:
            return self.held * (shape.total - shape.small) + 4 * shape.small
        head = 0 if shape.tied else self.frozen * shape.rows
        trained = 4 * shape.adapters(self.params)
        matrices = int((BYTES_EACH if self.nf4 else self.frozen) * shape.matrices)
        return matrices + head + 4 * (shape.rows + shape.small) + trained

    def _gradients(self) -> int:
        return 4 * self.shape.adapters(self.params) if self.adapted else self._weights()

    def _moments(self) -> int:
        each = 2 * MOMENTS[self.params.optimizer_state].bytes_per_element
        return int(each * self.shape.trained(self.params))

    def _gathered(self) -> int:
        """What shard: full gathers: two blocks, and what surrounds them."""
        rows = self.shape.rows * (1 if self.shape.tied else 2)
        return 4 * (rows + 2 * self.shape.matrices // self.config.num_hidden_layers)

    def _casts(self) -> int:
        """Copies of the layers' matrices in bfloat16, which autocast makes."""
        if not self.half:
            return 0
        if self.adapted:
            cast = self.shape.matrices if self.frozen == 4 and not self.nf4 else 0
            return 2 * (cast + self.shape.adapters(self.params))
        return 2 * self.shape.matrices if self.held == 4 else 0

    def _head_cast(self) -> int:
        held = self.held if not self.adapted or self.shape.tied else self.frozen
        return 2 * self.shape.rows if self.half and held == 4 else 0

    @cached_property
    def _layers(self) -> list[int]:
        layers, lengths = range(self.config.num_hidden_layers), self.load.lengths
        return [layer_bytes(self.config, layer, self.compute, lengths) for layer in layers]

    @cached_property
    def _layers_kept(self) -> int:
        """As the backward pass begins."""
        if self.blocks:
            return self._inputs() + self._one_layer()
        return sum(self._layers) + self._casts()

    def _inputs(self) -> int:
        """Of recomputed blocks."""
        each = stream_bytes(self.config, self.compute) * self.load.tokens
        return each * self.config.num_hidden_layers

    def _one_layer(self) -> int:
        return max(self._layers) + self._casts() // self.config.num_hidden_layers

    def _angles(self) -> int:
        return angle_bytes(self.config, self.compute, self.load.lengths)

    def _at_loss(self) -> int:
        """autocast keeps its copies of all matrices until then, of recomputed blocks too."""
        layers = self._inputs() if self.blocks else sum(self._layers)
        norm = norm_bytes(self.config, self.compute) * self.load.tokens
        return self._angles() + layers + self._casts() + norm + self._head_cast()

    def _logits(self) -> int:
        """The loss, and its way back through the output projection: see training/loss.py."""
        number, rows = self.compute.number, self.shape.rows
        trains = not self.adapted
        supervised, vocabulary = self.load.supervised, self.config.vocab_size
        hidden = 2 * number * supervised * self.config.hidden_size
        capped = self.config.final_logit_softcapping is not None
        if supervised * vocabulary > MAX_LOGITS:  # in chunks
            each = 12 if capped else 6 if self.half and self.device != "cpu" else 8
            if self.half and self.device == "cpu" and not capped:  # converted before the softmax
                each += number
            chunk = max(MAX_LOGITS * each, number * (MAX_LOGITS + rows * trains))
            return chunk + hidden + 4 * rows * trains
        count = supervised * vocabulary
        # on a CPU the gradient takes the logits' place; else in float32 them, softmax and gradient
        each = number if self.device == "cpu" else number + 12
        if capped:
            each += 2 * number
        chunk = 8 * min(count, kernels.MAX_LOGITS) if self.device == "cpu" else 0
        return count * each + max(chunk + hidden // 2, hidden + number * rows * trains)

    def _head_gradient(self) -> int:
        """Before the layers' gradients; where it is tied, apart from what was added up before."""
        if self.adapted or (self.load.several and not self.shape.tied):
            return 0
        return self.held * self.shape.rows

    def _passing(self) -> int:
        """What the backward pass of a layer computes and frees."""
        config, number = self.config, self.compute.number
        matrix = max(rows * columns for _, rows, columns in self.shape.projections)
        decoded = matrix * (number + 4) if self.nf4 else 0  # and its scales
        mlp = self.load.tokens * (12 * config.hidden_size + number * config.intermediate_size)
        return decoded + max(mlp, block_bytes(config, self.compute, self.load.lengths))

    def _ending(self) -> int:
        """The first layer, then the embedding: its gradient is made whole and added to that of the
        micro-batches before, and to a tied output projection's."""
        rows = 0 if self.adapted else self.held * self.shape.rows
        held = self.load.several + self.shape.tied
        layer = self._one_layer() + self._passing() + rows * (held - 1)
        return max(layer, rows * held)

    def _update(self) -> int:
        params = self.params
        if params.weights == "fp32" and params.optimizer_state == "fp32":
            return 0
        if self.adapted:
            sides = (side for _, *both in self.shape.projections for side in both)
            largest = params.lora_rank * max(sides)
        else:
            matrices = (rows * columns for _, rows, columns in self.shape.projections)
            largest = max(*matrices, self.shape.rows)
        return UPDATED[params.optimizer_state] * min(CHUNK_SIZE, largest)
