"""The training loop: batches, loss, backward, clip, step, log, save.

It knows nothing of files, DVC or MLflow: it reports to a Callback and asks it to save.
"""

import dataclasses
import math
import time

import numpy as np
import torch

from simple_llama.data.batches import Indices, Plan, evenly_spaced, split_prompt_and_reply
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import autocast
from simple_llama.model.generation import generate
from simple_llama.model.sharding import full_tensor, reshard
from simple_llama.params.train import TrainParams
from simple_llama.training.auto_params import decide_auto_params
from simple_llama.training.callback import Callback
from simple_llama.training.distributed import SINGLE_PROCESS, Ranks
from simple_llama.training.gradients import GradientAccumulator
from simple_llama.training.loss import Scores, score
from simple_llama.training.optimizer import AdamW, learning_rate, trainable_parameters, warmup_steps
from simple_llama.training.state import (
    Diverged,
    Progress,
    Snapshot,
    StepRecord,
    TrainingData,
    TrainResult,
)

SPIKE_WINDOW = 50
"""Steps over which the recent mean loss is taken."""
SPIKE_WARMUP = 20
"""Steps before which no loss is a spike: the mean is of too few."""


def train(
    model: Decoder,
    data: TrainingData,
    params: TrainParams,
    callback: Callback,
    snapshot: Snapshot | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> TrainResult:
    """Train the model in place, from the snapshot on where one is given, together with all ranks.

    Raises InputError where the warmup is longer than the training or a single example does not fit
    in memory, and Diverged.
    """
    trainer = Trainer(model, data, params, callback, ranks)
    if snapshot is not None:
        trainer.restore(snapshot)
    return trainer.run()


def plan_training(examples: int, params: TrainParams) -> Plan:
    """The steps of a training on so many examples.

    Raises InputError where the warmup is longer, unless max_steps or max_train_examples cut it
    short.
    """
    plan = Plan(
        num_examples=min(examples, params.max_train_examples or examples),
        examples_per_step=params.examples_per_step,
        seed=params.seed,
        epochs=params.epochs,
        max_steps=params.max_steps,
    )
    warmup_steps(plan.steps, params)
    return plan


class Trainer:
    """One training: its plan, optimizer and progress."""

    def __init__(
        self,
        model: Decoder,
        data: TrainingData,
        params: TrainParams,
        callback: Callback,
        ranks: Ranks,
    ) -> None:
        self.plan = plan_training(len(data.train), params)
        self.model, self.data, self.params = model, data, params
        self.callback, self.ranks = callback, ranks
        self.device = next(model.parameters()).device
        model.checkpoint_blocks = params.activation_checkpointing == "blocks"
        self.optimizer = AdamW(model, params)
        first = params.eval_interval or self.plan.steps_per_epoch
        self.progress = Progress(
            micro_batch_tokens=params.tokens_at_once, next_sample=first, sample_interval=first
        )
        self.gradients = GradientAccumulator(model, data, params, self.progress, callback, ranks)

    def run(self) -> TrainResult:
        params, plan, progress = self.params, self.plan, self.progress
        self.callback.on_train_begin(plan, progress)
        self.model.train()
        if not self._is_over():
            self.callback.on_preflight(decide_auto_params(self.gradients, self.optimizer, plan))
        if params.lora_base == "nf4" and progress.step == 0:
            self._score_base()
        if params.eval_interval and progress.step == 0:
            self._validate(full=False)
        while not self._is_over():
            self.step()
            if params.eval_interval and progress.step % params.eval_interval == 0:
                self._validate(full=False)
            self._sample_if_due()
            epoch_ended = plan.ends_epoch(progress.step - 1)
            if epoch_ended:
                self._end_epoch()
            self.callback.on_step_end(self.snapshot, epoch_ended=epoch_ended)
        return TrainResult(
            steps=progress.step,
            epochs=progress.step / plan.steps_per_epoch,
            examples=plan.examples_seen(progress.step),
            train_loss=progress.train_loss,
            val_loss=progress.val_loss,
            best_val_loss=progress.best_val_loss,
            best_step=progress.best_step,
            rounded_base_val_loss=progress.rounded_base_val_loss,
        )

    def snapshot(self) -> Snapshot:
        """The state between two steps. It holds no random state: order, dropout and samples are
        functions of (seed, step)."""
        tensors = {
            f"model.{name}": p.detach() for name, p in trainable_parameters(self.model).items()
        }
        for name, state in self.optimizer.state.items():
            tensors |= {f"optimizer.{key}.{name}": value for key, value in state.items()}
        return Snapshot(self.progress, tensors)

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot of this training. Raises InputError where it is another's."""
        self.progress = self.gradients.progress = snapshot.progress
        self.optimizer.init_state()
        snapshot.copy_into(self.snapshot().tensors)

    def _is_over(self) -> bool:
        patience = self.params.early_stopping_patience
        stopped = 0 < patience <= self.progress.epochs_without_better
        return stopped or self.progress.step >= self.plan.steps

    def step(self) -> None:
        """One optimizer step over all its micro-batches."""
        started = time.perf_counter()
        step = self.progress.step
        examples = self.plan.examples_at(step)
        lr = learning_rate(step, self.plan.steps, self.params)
        self.optimizer.lr = lr

        # dropout is a function of (seed, step): nothing else has to be kept to repeat it
        computed, supervised = self.gradients.compute(examples, (self.params.seed << 32) + step)
        clipped = full_tensor(self.optimizer.clip_grad_norm(self.params.max_grad_norm or math.inf))
        # the only wait for a GPU
        loss, norm = torch.stack([computed.to(clipped.device), clipped]).tolist()
        self._check(loss, norm, examples)
        self.optimizer.step()
        self.optimizer.zero_grad()

        self.progress.step += 1
        self.progress.loss_sum += loss * supervised
        self.progress.loss_tokens += supervised
        self.progress.recent_loss += (loss - self.progress.recent_loss) / min(
            self.progress.step, SPIKE_WINDOW
        )
        self.callback.on_optimizer_step(
            StepRecord(
                step=self.progress.step,
                epoch=self.progress.step / self.plan.steps_per_epoch,
                loss=loss,
                lr=lr,
                grad_norm=norm,
                tokens=int(self.data.train.lengths[examples].sum()),
                seconds=time.perf_counter() - started,
            )
        )

    def _check(self, loss: float, norm: float, examples: Indices) -> None:
        """Raise Diverged before an update that would do harm."""
        progress, factor = self.progress, self.params.loss_spike
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = f"loss {loss}, gradient norm {norm}, the update was not made"
        elif factor and progress.step >= SPIKE_WARMUP and loss > factor * progress.recent_loss:
            what = (
                f"loss {loss:.4g} is more than loss_spike ({factor:g}) times the recent mean "
                f"{progress.recent_loss:.4g}, the update was not made"
            )
        else:
            return
        raise self._diverged(progress.step + 1, what, examples)

    def _diverged(self, step: int, what: str, examples: Indices) -> Diverged:
        batches = self.gradients.batches(examples) if len(examples) else []
        return Diverged(step, what, examples, batches, self.snapshot())

    def _end_epoch(self) -> None:
        progress = self.progress
        progress.val_loss = self._validate(full=True)
        progress.train_loss = progress.loss_sum / progress.loss_tokens
        progress.loss_sum, progress.loss_tokens = 0.0, 0
        self._keep_if_better(progress.val_loss)
        epoch, rest = divmod(progress.step, self.plan.steps_per_epoch)
        if rest == 0:
            self.callback.on_epoch_end(epoch, self.model)

    def _score_base(self) -> None:
        """What the rounded base costs on the whole validation split: before the first step adapters
        change nothing."""
        examples = np.arange(len(self.data.val))
        loss = self._score(examples).mean_loss
        if not math.isfinite(loss):
            raise self._diverged(0, f"validation loss {loss}", np.arange(0))
        self.progress.rounded_base_val_loss = loss
        self.callback.on_rounded_base(loss, len(examples))

    def _validate(self, *, full: bool) -> float:
        """Validation loss over the whole split, or always the same eval_num_samples of it."""
        examples = np.arange(len(self.data.val))
        if not full:
            examples = evenly_spaced(len(examples), self.params.eval_num_samples)
        scores = self._score(examples)
        if not math.isfinite(scores.mean_loss):
            step = self.progress.step
            trained = self.plan.examples_at(step - 1) if step else np.arange(0)
            raise self._diverged(step, f"validation loss {scores.mean_loss}", trained)
        self.callback.on_validation(self.progress.step, scores.mean_loss, len(examples), full=full)
        return scores.mean_loss

    def _score(self, examples: Indices) -> Scores:
        return score(
            self.model,
            self.data.val,
            examples,
            max_tokens=self.progress.micro_batch_tokens,
            pad_id=self.data.pad_id,
            precision=self.params.precision,
            ranks=self.ranks,
        )

    def _keep_if_better(self, val_loss: float) -> None:
        progress = self.progress
        if val_loss < progress.best_val_loss:
            progress.best_val_loss, progress.best_step = val_loss, progress.step
            progress.epochs_without_better = 0
            self.callback.on_improvement(progress.step, self.model)
        else:
            progress.epochs_without_better += 1

    def _sample_if_due(self) -> None:
        """Answer a few validation prompts, at intervals that grow by model_gen_multiplier."""
        progress, params = self.progress, self.params
        if params.sample_prompts == 0 or progress.step < progress.next_sample:
            return
        progress.sample_interval *= params.model_gen_multiplier
        progress.next_sample += math.ceil(progress.sample_interval)
        examples = evenly_spaced(len(self.data.val), params.sample_prompts)
        prompts = [split_prompt_and_reply(self.data.val, int(example))[0] for example in examples]
        with autocast(self.device, params.precision):
            replies = generate(
                self.model,
                prompts,
                max_new_tokens=params.sample_max_tokens,
                stop_ids=self.data.stop_ids,
                temperature=params.sample_temperature,
                generator=torch.Generator().manual_seed(params.seed + progress.step),
            )
        reshard(self.model)
        self.callback.on_samples(progress.step, prompts, replies)


def report(result: TrainResult) -> dict[str, float]:
    """The result as reports/train.json holds it; what was not measured is not in it."""
    values = dataclasses.asdict(result)
    return {key: value for key, value in values.items() if value is not None}
