"""The invariances that the pipeline promises, each as a difference and its tolerance.

Everything is computed in float32: in bfloat16, rounding would hide the differences in question.
Only a few examples are used, so that a small model takes seconds.
"""

import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simple_llama.data.batches import (
    Indices,
    MicroBatch,
    epoch_order,
    evenly_spaced,
    micro_batches,
    split_prompt_and_reply,
)
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.prompt_formats import Message
from simple_llama.data.tokens import Tokens
from simple_llama.model.decoder import Decoder
from simple_llama.model.folder import load_model, save_model
from simple_llama.model.generation import generate
from simple_llama.params.train import TrainParams
from simple_llama.training.loss import score, summed_loss

LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4
LOGITS_TOLERANCE = 1e-4

STEP_EXAMPLES = 32
"""Examples of a training step, at most."""
STEP_TOKENS = 4096
"""Tokens of one batch with its padding, at most; a batch has at least two examples, though."""
EVALUATED = 8
"""Validation examples."""
PROMPTS = 4
NEW_TOKENS = 8
"""Generated after each prompt."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """What one invariance measured."""

    name: str
    difference: float
    unit: str
    """Of the difference."""
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the difference is within the tolerance; one that is not a number is not."""
        return self.difference <= self.tolerance

    def __str__(self) -> str:
        verdict = "ok" if self.holds else "FAILED"
        return (
            f"{self.name:<36}  {self.difference:>8.3g} {self.unit:<16}  "
            f"tolerance {self.tolerance:<6g}  {verdict}"
        )


def micro_batching(
    model: Decoder, tokens: Tokens, tokenizer: ChatTokenizer, params: TrainParams
) -> Iterator[Check]:
    """Compare a step's loss and gradient: in micro-batches, one example at a time, in one batch."""
    examples = first_step(tokens, params)
    whole = len(examples) * int(tokens.lengths[examples].max())
    losses, gradients = [], []
    for budget in (params.tokens_at_once, 1, whole):
        batches = micro_batches(tokens, examples, max_tokens=budget, pad_id=tokenizer.pad_id)
        losses.append(_mean_loss(model, list(batches), backward=True))
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
        model.zero_grad(set_to_none=True)  # lets go of the gradients, which are kept here
    as_trained, *others = gradients
    largest = float(np.max([max_difference(as_trained, other) for other in others]))
    yield Check(
        name="micro-batching keeps the loss",
        difference=float(np.ptp(losses)),
        unit="nats per token",
        tolerance=LOSS_TOLERANCE,
    )
    yield Check(
        name="micro-batching keeps the gradient",
        difference=largest / nn.utils.get_total_norm(as_trained).item(),
        unit="of its norm",
        tolerance=GRADIENT_TOLERANCE,
    )


def padding(model: Decoder, tokens: Tokens, tokenizer: ChatTokenizer, params: TrainParams) -> Check:
    """Compare a step's loss: padded to each micro-batch's longest, and padded to max_seq_len."""
    examples = first_step(tokens, params)[: max(2, STEP_TOKENS // params.max_seq_len)]
    batches = partial(
        micro_batches, tokens, examples, max_tokens=params.tokens_at_once, pad_id=tokenizer.pad_id
    )
    ways = batches(), batches(pad_to=params.max_seq_len)
    return _same_loss("padding keeps the loss", model, ways)


def packing(model: Decoder, tokens: Tokens, tokenizer: ChatTokenizer, params: TrainParams) -> Check:
    """Compare a step's loss: padded, and packed (several examples end to end in one row)."""
    examples = first_step(tokens, params)
    several = max(params.tokens_at_once, 2 * int(tokens.lengths[examples].max()))
    batches = partial(micro_batches, tokens, examples, max_tokens=several, pad_id=tokenizer.pad_id)
    return _same_loss("packing keeps the loss", model, (batches(), batches(packing=True)))


def _same_loss(name: str, model: Decoder, ways: Iterable[Iterator[MicroBatch]]) -> Check:
    """How far the losses of the same examples, put into micro-batches in several ways, differ."""
    losses = [_mean_loss(model, list(way)) for way in ways]
    return Check(
        name=name,
        difference=float(np.ptp(losses)),
        unit="nats per token",
        tolerance=LOSS_TOLERANCE,
    )


def first_step(tokens: Tokens, params: TrainParams) -> Indices:
    """The examples of the first optimizer step, or as many of them as fit into one batch."""
    trained = min(len(tokens), params.max_train_examples or len(tokens))
    size = min(params.examples_per_step, STEP_EXAMPLES)
    examples = epoch_order(trained, params.seed, 0)[:size]
    return examples[: max(2, STEP_TOKENS // int(tokens.lengths[examples].max()))]


def _mean_loss(model: Decoder, batches: list[MicroBatch], *, backward: bool = False) -> float:
    """Nats per supervised token; the gradient is added up in the parameters if asked for."""
    device = _device(model)
    supervised = sum(len(batch.targets) for batch in batches)
    loss = 0.0
    with torch.set_grad_enabled(backward):
        for batch in batches:
            part = summed_loss(model, batch.to(device)) / supervised
            if backward:
                part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
    return loss


def prompt_identity(
    tokens: Tokens, tokenizer: ChatTokenizer, conversations: Mapping[int, Sequence[Message]]
) -> Check:
    """Compare the prompt of inference with what stands before the last reply in training.

    conversations: example of `tokens` → its messages.
    """
    differing = sum(
        tokenizer.prompt(messages[:-1]) != split_prompt_and_reply(tokens, example)[0]
        for example, messages in conversations.items()
    )
    return Check(
        name="training prompt = inference prompt",
        difference=differing,
        unit=f"of {len(conversations)} prompts",
        tolerance=0,
    )


def evaluation(
    model: Decoder, tokens: Tokens, tokenizer: ChatTokenizer, params: TrainParams
) -> Iterator[Check]:
    """Compare random states and the model's mode before and after scoring and generating.

    It starts from train mode too: an evaluation that forgot to leave it would draw dropout masks.
    """
    device = _device(model)
    before = random_states(device)
    modes_changed = 0
    for training in (True, False):
        model.train(training)
        _evaluate(model, tokens, tokenizer, params)
        modes_changed += any(module.training != training for module in model.modules())
    model.eval()
    after = random_states(device)
    yield Check(
        name="evaluation keeps the random state",
        difference=sum(before[name] != after[name] for name in before),
        unit=f"of {len(before)} states",
        tolerance=0,
    )
    yield Check(
        name="evaluation keeps train and eval mode",
        difference=modes_changed,
        unit="of 2 modes",
        tolerance=0,
    )


def _evaluate(
    model: Decoder, tokens: Tokens, tokenizer: ChatTokenizer, params: TrainParams
) -> None:
    """Score and answer a few examples, greedily as evaluate does and sampled as training does."""
    examples = evenly_spaced(len(tokens), EVALUATED)
    score(
        model,
        tokens,
        examples,
        max_tokens=params.tokens_at_once,
        pad_id=tokenizer.pad_id,
        precision="fp32",
    )
    prompts = some_prompts(tokens, model.config.max_length)
    for temperature in (0.0, 1.0):
        generate(
            model,
            prompts,
            max_new_tokens=NEW_TOKENS,
            stop_ids=tokenizer.stop_ids,
            temperature=temperature,
            generator=torch.Generator().manual_seed(params.seed),
        )


def random_states(device: torch.device) -> dict[str, object]:
    """The random states of this process: library → state. They are equal if nothing was drawn."""
    numpy_state: Any = np.random.get_state()
    states: dict[str, object] = {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in numpy_state],
        "python": random.getstate(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device).tolist()
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state().tolist()
    return states


def some_prompts(tokens: Tokens, max_positions: int) -> list[list[int]]:
    """A few prompts of various lengths, shortest first, cut so that an answer still fits."""
    by_length = np.argsort(tokens.lengths, kind="stable")
    chosen = by_length[evenly_spaced(len(tokens), PROMPTS)]
    room = max(1, max_positions - NEW_TOKENS)
    return sorted((split_prompt_and_reply(tokens, int(i))[0][:room] for i in chosen), key=len)


def cached_generation(
    model: Decoder, prompts: Sequence[Sequence[int]], tokenizer: ChatTokenizer
) -> Check:
    """Compare the logits of generation with a KV cache with those of each whole sequence."""
    differences = [_generation_difference(model, [prompt], tokenizer.stop_id) for prompt in prompts]
    return Check(
        name="cached generation = uncached",
        difference=float(np.max(differences)),
        unit="in the logits",
        tolerance=LOGITS_TOLERANCE,
    )


def batched_generation(
    model: Decoder, prompts: Sequence[Sequence[int]], tokenizer: ChatTokenizer
) -> Check:
    """The same with all prompts in one left-padded batch, in which half of the rows end early."""
    return Check(
        name="batched generation = one at a time",
        difference=_generation_difference(model, prompts, tokenizer.stop_id),
        unit="in the logits",
        tolerance=LOGITS_TOLERANCE,
    )


@torch.inference_mode()
def _generation_difference(model: Decoder, prompts: Sequence[Sequence[int]], stop_id: int) -> float:
    """Largest difference of the logits that `generate` chose from and those without a cache.

    Logits, not tokens: of two nearly equal ones rounding may choose either.
    """
    with _recorded_logits(model, stop_id) as recorded:
        replies = generate(model, prompts, max_new_tokens=NEW_TOKENS, stop_ids=[stop_id])
    cached, uncached = [], []
    for step, logits in enumerate(recorded):
        # the first rows are those that ended and left the batch
        staying = range(len(prompts) - len(logits), len(prompts))
        for row, place in zip(logits, staying, strict=True):
            if step <= len(replies[place]):
                ids = [*prompts[place], *replies[place][:step]]
                cached.append(row)
                uncached.append(_logits(model, ids)[-1])
    return max_difference(cached, uncached)


@contextmanager
def _recorded_logits(model: Decoder, stop_id: int) -> Iterator[list[Tensor]]:
    """Of each step of `generate`, (rows, V).

    When rows end is set here, so that the number of steps and the rows that leave the batch depend
    on no model: the first half of several rows ends halfway, no other row before NEW_TOKENS.
    """
    recorded: list[Tensor] = []

    def record(_module: nn.Module, _inputs: object, logits: Tensor) -> Tensor:
        recorded.append(logits.float().clone())
        steered = logits.clone()
        steered[:, stop_id] = -torch.inf
        if len(recorded) == NEW_TOKENS // 2 and len(logits) > 1:
            steered[: len(logits) - len(logits) // 2, stop_id] = torch.inf
        return steered

    handle = model.lm_head.register_forward_hook(record)
    try:
        yield recorded
    finally:
        handle.remove()


def saving(model: Decoder, prompt: Sequence[int], params: TrainParams) -> Iterator[Check]:
    """Compare weights and logits before saving and after loading, in a temporary folder.

    Raises InputError or OSError where the temporary folder has no room for the model.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save_model(model, folder)
        loaded = load_model(folder, _device(model), fused=params.use_flash_attention).eval()
    with torch.inference_mode():
        weights = max_difference(list(model.parameters()), list(loaded.parameters()))
        logits = max_difference([_logits(model, prompt)], [_logits(loaded, prompt)])
    yield Check(name="saved weights = loaded", difference=weights, unit="", tolerance=0)
    yield Check(name="saved logits = loaded", difference=logits, unit="", tolerance=0)


def _logits(model: Decoder, ids: Sequence[int]) -> Tensor:
    """(T, V) of one sequence of T tokens, without a cache."""
    return model.logits(model(torch.tensor([ids], device=_device(model))))[0]


def max_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference between tensors of the same shapes, pair by pair; NaN if any is."""
    differences = [(a - b).abs().max() for a, b in zip(ours, theirs, strict=True)]
    return torch.stack(differences).max().item()


def _device(model: Decoder) -> torch.device:
    return next(model.parameters()).device
