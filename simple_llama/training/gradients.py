"""The gradients of one optimizer step, in micro-batches as large as memory allows."""

import numpy as np
import torch
from torch import Tensor

from simple_llama.data.batches import (
    ONLY_RANK,
    Indices,
    MicroBatch,
    Rank,
    balanced_max_tokens,
    count_supervised,
    micro_batches,
)
from simple_llama.errors import InputError
from simple_llama.model import packing
from simple_llama.model.capture import warn_without
from simple_llama.model.compilation import compile_layers, undo_compilation
from simple_llama.model.config import ModelConfig
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import (
    autocast,
    empty_cache,
    is_out_of_memory,
    nondeterministic_operation,
    uses_bf16,
)
from simple_llama.params.train import TrainParams
from simple_llama.training.callback import Callback
from simple_llama.training.cuda_graphs import CudaGraphs
from simple_llama.training.distributed import GradientAverager, Ranks
from simple_llama.training.loss import summed_loss
from simple_llama.training.state import Progress, TrainingData


class GradientAccumulator:
    """Adds up a step's gradients over its micro-batches, and averages them over the ranks.

    Out of memory, it halves progress.micro_batch_tokens and computes the step again: its loss
    depends neither on the micro-batches nor on the number of ranks.
    """

    def __init__(
        self,
        model: Decoder,
        data: TrainingData,
        params: TrainParams,
        progress: Progress,
        callback: Callback,
        ranks: Ranks,
    ) -> None:
        self.model, self.data, self.params = model, data, params
        self.progress, self.callback, self.ranks = progress, callback, ranks
        self.averager = GradientAverager(model, ranks)
        self.device = next(model.parameters()).device
        self.compiled = False
        self.graphs = self._graphs() if params.cuda_graphs else None

    def compute(self, examples: Indices, seed: int) -> tuple[Tensor, int]:
        """Loss (nats per supervised token, a scalar) and supervised tokens of all ranks; the
        gradients are in the parameters. seed: of dropout, which differs by rank.

        A single process does not wait for its GPU here: reading the loss does.

        Raises InputError where a single example does not fit in memory, or, sharded, where any
        micro-batch does not: the other ranks then wait within FSDP for this one, so they cannot
        agree to compute the step again.
        """
        supervised = count_supervised(self.data.train, examples)
        while True:
            # two dropout masks are the same only beyond 256 ranks or 2^24 steps
            torch.manual_seed(seed + (self.ranks.rank << 24))
            loss, failed = torch.zeros(()), False
            try:
                loss = self._accumulate(self.batches(examples, self.ranks), supervised)
            except RuntimeError as error:
                if operation := nondeterministic_operation(error):
                    raise InputError(
                        f"deterministic: got true, wanted false on {self.device}: {operation} has "
                        "no deterministic kernel there"
                    ) from None
                if not is_out_of_memory(error):
                    raise
                if self.ranks.sharded:
                    raise InputError(
                        f"{self.device}: out of memory, wanted a smaller micro_batch_tokens"
                    ) from None
                failed = True
            if self.ranks.world_size > 1:
                told = self.ranks.all_reduce(np.array([loss.item(), failed], np.float64))
                loss, failed = torch.tensor(told[0]), bool(told[1])
            if not failed:
                with autocast(self.device, self.params.precision):
                    self.averager.average()
                return loss, supervised
            # not within `except`: the exception holds tensors until it ends
            self.model.zero_grad(set_to_none=True)
            if self.graphs:
                self.graphs.clear()
            empty_cache(self.device)
            self._lower(examples)

    def batches(self, examples: Indices, rank: Rank = ONLY_RANK) -> list[MicroBatch]:
        """The micro-batches of these examples that are computed by this rank."""
        batches = micro_batches(
            self.data.train,
            examples,
            max_tokens=self._budget(examples),
            pad_id=self.data.pad_id,
            pad_to=self._pad_to,
            packing=self.packing,
            rank=rank,
        )
        return list(batches)

    @property
    def packing(self) -> bool:
        """Whether micro-batches are packed; auto: where that is known to be faster."""
        config = self.model.config
        return packs(
            config,
            self.params,
            self.device.type,
            half=uses_bf16(self.device, self.params.precision),
            varlen=packing.has_varlen_kernel(self.device, packing.kernel_width(config)),
            compiled=self.compiled,
        )

    @property
    def _pad_to(self) -> int | None:
        return None if self.params.dynamic_padding else self.params.max_seq_len

    def _budget(self, examples: Indices) -> int:
        lengths = self.data.train.lengths[examples]
        return balanced_max_tokens(
            lengths, self.progress.micro_batch_tokens, self._pad_to, self.ranks.world_size
        )

    def compile(self, examples: Indices) -> None:
        """Compile the layers and try them on these examples; where that fails, warn and do
        without."""
        self.compiled = True
        if self.graphs:
            self.graphs.clear()  # they replay what is not compiled
        try:
            compile_layers(self.model)
            self.compute(examples, 0)
        except Exception as error:  # whatever the compiler or its toolchain may raise
            warn_without("enable_compilation: torch.compile failed", error)
            undo_compilation(self.model)
            self.compiled = False
        self.model.zero_grad(set_to_none=True)

    def _accumulate(self, batches: list[MicroBatch], supervised: int) -> Tensor:
        """This rank's part of the loss."""
        loss = torch.zeros((), device=self.device)
        for batch in batches:
            part = self._replayed(batch, supervised) if self.graphs else None
            if part is None:
                with autocast(self.device, self.params.precision):
                    part = summed_loss(self.model, batch.to(self.device)) / supervised
                # the ranks' gradients will be averaged, but their sum is wanted
                (part * self.ranks.world_size).backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        return loss

    def _graphs(self) -> CudaGraphs:
        check_cuda_graphs(self.device.type, packed=self.packing)
        return CudaGraphs(self.model, self.params.precision)

    def _replayed(self, batch: MicroBatch, supervised: int) -> Tensor | None:
        """A micro-batch's part of the loss by a CUDA graph, or None where capturing fails."""
        assert self.graphs is not None
        params = self.params
        fixed = batch.in_fixed_shape(params.examples_per_step, params.max_seq_len, self.data.pad_id)
        try:
            return self.graphs.compute(fixed, 1 / supervised)
        except Exception as error:  # whatever cannot be captured
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            warn_without("cuda_graphs: capturing failed", error)
            self.graphs = None
            return None

    def _lower(self, examples: Indices) -> None:
        lengths = self.data.train.lengths[examples]
        longest, budget = max(int(lengths.max()), self._pad_to or 0), self._budget(examples)
        if budget <= longest:
            raise InputError(
                f"{self.device}: one example of {longest} tokens does not fit in memory, "
                "wanted a smaller max_seq_len or model"
            )
        self.progress.micro_batch_tokens = max(longest, budget // 2)
        self.callback.on_out_of_memory(self.progress.micro_batch_tokens)


def packs(
    config: ModelConfig,
    params: TrainParams,
    device: str,
    *,
    half: bool,
    varlen: bool,
    compiled: bool = False,
) -> bool:
    """Whether micro-batches are packed on a kind of device. half: products are computed in
    bfloat16; varlen: a CUDA device has PyTorch's variable-length attention for the model's heads;
    compiled: its layers are."""
    if params.packing != "auto":
        return params.packing
    if device == "cpu":
        fast = not compiled
    else:
        fast = half and varlen and config.attn_logit_softcapping is None
    return fast and params.use_flash_attention and params.dynamic_padding


def check_cuda_graphs(device: str, *, packed: bool) -> None:
    """Raises InputError where micro-batches cannot be captured on a kind of device."""
    if device != "cuda" or not packed:
        raise InputError(
            f"cuda_graphs: got true, wanted false on {device} or without packed micro-batches"
        )
