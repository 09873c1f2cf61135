"""The training loop: batches, loss, backward, clip, step, log, save.

It knows nothing of files, DVC or MLflow: it reports to an Observer and asks it to save.
"""

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from simple_llama.data.batches import Indices, MicroBatch, Plan, micro_batches, split_reply, spread
from simple_llama.data.tokens import Tokens
from simple_llama.errors import InputError
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import autocast
from simple_llama.model.generation import generate
from simple_llama.params import TrainParams
from simple_llama.training.loss import Scores, score, summed_loss
from simple_llama.training.optimizer import adamw, check_warmup, learning_rate


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The two splits and the ids that batching and sampling need."""

    train: Tokens
    val: Tokens
    pad_id: int
    stop_id: int


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one optimizer step did."""

    step: int
    """1 for the first."""
    epoch: float
    """Epochs done after this step."""
    loss: float
    """Nats per supervised token, before the update."""
    lr: float
    grad_norm: float
    """Before clipping."""
    tokens: int
    """Real tokens, without padding."""
    seconds: float


class Observer(Protocol):
    """Hears what happens in the loop."""

    def started(self, plan: Plan) -> None: ...
    def stepped(self, record: StepRecord) -> None: ...
    def validated(self, step: int, loss: float, examples: int, *, full: bool) -> None: ...
    def sampled(
        self, step: int, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]
    ) -> None: ...
    def improved(self, model: Decoder) -> None:
        """The model is the best so far: keep it."""

    def epoch_ended(self, epoch: int, model: Decoder) -> None: ...


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What came of a training; losses in nats per supervised token."""

    steps: int
    epochs: float
    train_loss: float
    """Over the last epoch's steps, as each was trained."""
    val_loss: float
    """Full validation after the last step."""
    best_val_loss: float
    best_step: int


class Diverged(InputError):
    """A loss or a gradient is no longer a finite number.

    `examples`: those of the step whose update was not made, or, where a validation shows it, of the
    step before; none where the model came so.
    """

    def __init__(self, step: int, what: str, examples: Indices) -> None:
        super().__init__(
            f"training diverged at step {step}: {what}; a lower max_lr or a longer warmup may help"
        )
        self.step = step
        self.examples = examples


@dataclass
class Progress:
    """What the loop carries from step to step besides weights and optimizer."""

    step: int = 0
    best_val_loss: float = math.inf
    best_step: int = 0
    epochs_without_better: int = 0
    loss_sum: float = 0.0
    """Over the current epoch, with loss_tokens: its token-weighted training loss."""
    loss_tokens: int = 0
    next_sample: int = 0
    sample_distance: float = 0.0


def train(
    model: Decoder, data: TrainingData, params: TrainParams, observer: Observer
) -> TrainResult:
    """Train the model in place.

    Raises InputError where the warmup does not fit the steps, and Diverged.
    """
    return Trainer(model, data, params, observer).run()


def plan_training(examples: int, params: TrainParams) -> Plan:
    """The steps of a training on so many examples.

    Raises InputError where the warmup would not end within them.
    """
    plan = Plan(
        examples=min(examples, params.max_train_examples or examples),
        step_examples=params.step_examples,
        seed=params.seed,
        epochs=params.epochs,
        max_steps=params.max_steps,
    )
    check_warmup(plan.steps, params)
    return plan


class Trainer:
    """One training: its plan, optimizer and progress."""

    def __init__(
        self, model: Decoder, data: TrainingData, params: TrainParams, observer: Observer
    ) -> None:
        self.plan = plan_training(len(data.train), params)
        self.model, self.data, self.params, self.observer = model, data, params, observer
        self.device = next(model.parameters()).device
        self.optimizer = adamw(model, params)
        self.forward: Callable[[Tensor], Tensor] = model
        first = params.eval_interval or self.plan.steps_per_epoch
        self.progress = Progress(next_sample=first, sample_distance=first)

    def run(self) -> TrainResult:
        params, plan, progress = self.params, self.plan, self.progress
        self.observer.started(plan)
        self.model.train()
        if params.enable_compilation:
            self.forward = self._compiled()
        if params.eval_interval:
            self._validate(full=False)
        val_loss, train_loss = math.nan, math.nan
        while progress.step < plan.steps:
            self._step()
            if params.eval_interval and progress.step % params.eval_interval == 0:
                self._validate(full=False)
            self._sample_if_due()
            if plan.ends_epoch(progress.step - 1):
                val_loss = self._validate(full=True)
                train_loss = progress.loss_sum / progress.loss_tokens
                progress.loss_sum, progress.loss_tokens = 0.0, 0
                self._keep_if_better(val_loss)
                epoch, rest = divmod(progress.step, plan.steps_per_epoch)
                if rest == 0:
                    self.observer.epoch_ended(epoch, self.model)
                if self._patience_is_over():
                    break
        return TrainResult(
            steps=progress.step,
            epochs=progress.step / plan.steps_per_epoch,
            train_loss=train_loss,
            val_loss=val_loss,
            best_val_loss=progress.best_val_loss,
            best_step=progress.best_step,
        )

    def _step(self) -> None:
        """One optimizer step over all its micro-batches."""
        started = time.perf_counter()
        step = self.progress.step
        examples = self.plan.at(step)
        batches = self._batches(examples)
        supervised = sum(len(batch.targets) for batch in batches)
        # dropout is a function of (seed, step): nothing else has to be kept to repeat it
        torch.manual_seed((self.params.seed << 32) + step)
        lr = learning_rate(step, self.plan.steps, self.params)
        for group in self.optimizer.param_groups:
            group["lr"] = lr

        loss = torch.zeros((), device=self.device)
        for on_cpu in batches:
            batch = on_cpu.to(self.device)
            with autocast(self.device, self.params.precision):
                part = summed_loss(self.model, batch, self.forward) / supervised
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.params.max_grad_norm or math.inf
        )
        loss_value, norm_value = loss.item(), norm.item()
        if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
            what = f"loss {loss_value}, gradient norm {norm_value}, the update was not made"
            raise Diverged(step + 1, what, examples)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

        self.progress.step += 1
        self.progress.loss_sum += loss_value * supervised
        self.progress.loss_tokens += supervised
        self.observer.stepped(
            StepRecord(
                step=self.progress.step,
                epoch=self.progress.step / self.plan.steps_per_epoch,
                loss=loss_value,
                lr=lr,
                grad_norm=norm_value,
                tokens=int(self.data.train.lengths[examples].sum()),
                seconds=time.perf_counter() - started,
            )
        )

    def _batches(self, examples: Indices) -> list[MicroBatch]:
        batches = micro_batches(
            self.data.train,
            examples,
            budget=self.params.micro_batch_tokens,
            pad_id=self.data.pad_id,
            pad_to=None if self.params.dynamic_padding else self.params.max_seq_len,
        )
        return list(batches)

    def _compiled(self) -> Callable[[Tensor], Tensor]:
        """The compiled model, tried on one micro-batch; the model itself where that fails."""
        compiled = torch.compile(self.model, dynamic=True)
        batch = self._batches(self.plan.at(0))[-1].to(self.device)
        try:
            with autocast(self.device, self.params.precision):
                loss = summed_loss(self.model, batch, compiled)
            loss.backward()  # type: ignore[no-untyped-call]
        except Exception as error:  # whatever the compiler or its toolchain may raise
            reason = str(error).strip().splitlines()
            warnings.warn(
                f"enable_compilation: torch.compile failed, training goes on without it: "
                f"{type(error).__name__}: {reason[0] if reason else ''}",
                stacklevel=2,
            )
            compiled = self.model
        self.model.zero_grad(set_to_none=True)
        return compiled

    def _validate(self, *, full: bool) -> float:
        """Validation loss over the whole split, or always the same eval_num_samples of it."""
        examples = np.arange(len(self.data.val))
        if not full:
            examples = spread(len(examples), self.params.eval_num_samples)
        scores = self._score(examples)
        if not math.isfinite(scores.mean_loss):
            step = self.progress.step
            trained = self.plan.at(step - 1) if step else np.arange(0)
            raise Diverged(step, f"validation loss {scores.mean_loss}", trained)
        self.observer.validated(self.progress.step, scores.mean_loss, len(examples), full=full)
        return scores.mean_loss

    def _score(self, examples: Indices) -> Scores:
        return score(
            self.model,
            self.data.val,
            examples,
            budget=self.params.micro_batch_tokens,
            pad_id=self.data.pad_id,
            precision=self.params.precision,
        )

    def _keep_if_better(self, val_loss: float) -> None:
        progress = self.progress
        if val_loss < progress.best_val_loss:
            progress.best_val_loss, progress.best_step = val_loss, progress.step
            progress.epochs_without_better = 0
            self.observer.improved(self.model)
        else:
            progress.epochs_without_better += 1

    def _patience_is_over(self) -> bool:
        patience = self.params.early_stopping_patience
        return 0 < patience <= self.progress.epochs_without_better

    def _sample_if_due(self) -> None:
        """Answer a few validation prompts, at distances that grow by model_gen_multiplier."""
        progress, params = self.progress, self.params
        if params.sample_prompts == 0 or progress.step < progress.next_sample:
            return
        progress.sample_distance *= params.model_gen_multiplier
        progress.next_sample += math.ceil(progress.sample_distance)
        examples = spread(len(self.data.val), params.sample_prompts)
        prompts = [split_reply(self.data.val, int(example))[0] for example in examples]
        with autocast(self.device, params.precision):
            replies = generate(
                self.model,
                prompts,
                max_new_tokens=params.sample_max_tokens,
                stop_id=self.data.stop_id,
                temperature=params.sample_temperature,
                generator=torch.Generator().manual_seed(params.seed + progress.step),
            )
        self.observer.sampled(progress.step, prompts, replies)


def report(result: TrainResult) -> dict[str, float]:
    """The result as reports/train.json holds it."""
    return dataclasses.asdict(result)
