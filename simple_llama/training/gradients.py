"""The gradients of one optimizer step, in micro-batches as large as memory allows."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from simple_llama.data.batches import Indices, MicroBatch, micro_batches
from simple_llama.errors import InputError
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import autocast, is_out_of_memory, release_memory
from simple_llama.params import TrainParams
from simple_llama.training.loss import summed_loss
from simple_llama.training.observer import Observer, Progress, TrainingData


class Gradients:
    """Computes them. progress.micro_batch_tokens is halved where memory does not suffice: the
    loss of a step does not depend on how it is cut."""

    def __init__(
        self,
        model: Decoder,
        data: TrainingData,
        params: TrainParams,
        progress: Progress,
        observer: Observer,
    ) -> None:
        self.model, self.data, self.params = model, data, params
        self.progress, self.observer = progress, observer
        self.device = next(model.parameters()).device
        self.forward: Callable[[Tensor], Tensor] = model

    def compute(self, examples: Indices, seed: int) -> tuple[float, int]:
        """Loss (nats per supervised token) and supervised tokens; the gradients stand in the
        parameters. `seed` decides dropout.

        Raises InputError where a single example does not fit in memory.
        """
        while True:
            torch.manual_seed(seed)
            try:
                return self._accumulate(self.batches(examples))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            # only here, after the exception, are the tensors that it held free
            self.model.zero_grad(set_to_none=True)
            release_memory(self.device)
            self._lower(examples)

    def batches(self, examples: Indices) -> list[MicroBatch]:
        batches = micro_batches(
            self.data.train,
            examples,
            budget=self.progress.micro_batch_tokens,
            pad_id=self.data.pad_id,
            pad_to=None if self.params.dynamic_padding else self.params.max_seq_len,
        )
        return list(batches)

    def compile(self, examples: Indices) -> None:
        """Compile the model, tried on these examples; without it where that fails."""
        self.forward = torch.compile(self.model, dynamic=True)
        try:
            self.compute(examples, 0)
        except Exception as error:  # whatever the compiler or its toolchain may raise
            reason = str(error).strip().splitlines()
            warnings.warn(
                f"enable_compilation: torch.compile failed, training goes on without it: "
                f"{type(error).__name__}: {reason[0] if reason else ''}",
                stacklevel=2,
            )
            self.forward = self.model
        self.model.zero_grad(set_to_none=True)

    def _accumulate(self, batches: list[MicroBatch]) -> tuple[float, int]:
        supervised = sum(len(batch.targets) for batch in batches)
        loss = torch.zeros((), device=self.device)
        for on_cpu in batches:
            batch = on_cpu.to(self.device)
            with autocast(self.device, self.params.precision):
                part = summed_loss(self.model, batch, self.forward) / supervised
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        return loss.item(), supervised

    def _lower(self, examples: Indices) -> None:
        widths = [int(batch.ids.shape[1]) + 1 for batch in self.batches(examples)]
        longest, budget = max(widths), self.progress.micro_batch_tokens
        if budget <= longest:
            raise InputError(
                f"{self.device}: one example of {longest} tokens does not fit in memory, "
                "wanted a smaller max_seq_len or model"
            )
        self.progress.micro_batch_tokens = max(longest, budget // 2)
        self.observer.lowered(self.progress.micro_batch_tokens)
