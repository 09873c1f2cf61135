"""The values of params that are auto: decided by computing the step with the longest examples once,
before training begins. What does not fit in memory fails then, too."""

from simple_llama.data.batches import Indices, Plan
from simple_llama.model.device import free_memory
from simple_llama.model.quantisation import held_bytes
from simple_llama.model.sharding import to_local
from simple_llama.training.gradients import GradientAccumulator
from simple_llama.training.optimizer import AdamW
from simple_llama.training.preflight import (
    Preflight,
    compilation_pays,
    fitting_tokens,
    longest_step,
    preflight,
)


def decide_auto_params(gradients: GradientAccumulator, optimizer: AdamW, plan: Plan) -> Preflight:
    """Compute the longest step without an update, compiled where params say so.

    What is auto is decided once, before the first step of a training, and kept in its progress:
    micro_batch_tokens and compiled.
    """
    params, progress, ranks = gradients.params, gradients.progress, gradients.ranks
    examples = plan.examples_at(longest_step(plan, gradients.data.train.lengths))
    chosen = params.enable_compilation
    if progress.compiled if chosen == "auto" else chosen:
        gradients.compile(examples)
    result = _measure(gradients, optimizer, plan, examples)
    if params.micro_batch_tokens == "auto" and progress.step == 0 and not params.deterministic:
        fitting = min(ranks.all_gather(_fitting_tokens(gradients, optimizer, examples, result)))
        if fitting > progress.micro_batch_tokens:
            progress.micro_batch_tokens = fitting
            result = _measure(gradients, optimizer, plan, examples)
    if chosen == "auto" and progress.compiled is None:
        pays = compilation_pays(gradients.device, result.seconds_left) and not params.deterministic
        if ranks.broadcast(pays):
            gradients.compile(examples)
            result = _measure(gradients, optimizer, plan, examples)
        progress.compiled = gradients.compiled
    return result


def _measure(
    gradients: GradientAccumulator, optimizer: AdamW, plan: Plan, examples: Indices
) -> Preflight:
    def compute() -> int:
        gradients.compute(examples, 0)[0].item()  # wait for it
        return gradients.progress.micro_batch_tokens

    result = preflight(
        gradients.model,
        optimizer,
        compute,
        packed=gradients.packing,
        compiled=gradients.compiled,
        plan=plan,
        lengths=gradients.data.train.lengths,
        steps_left=plan.steps - gradients.progress.step,
        single_process=gradients.ranks.world_size == 1,
    )
    optimizer.zero_grad()
    return result


def _fitting_tokens(
    gradients: GradientAccumulator, optimizer: AdamW, examples: Indices, result: Preflight
) -> int:
    """What micro_batch_tokens: auto stands for on this rank's device."""
    free = free_memory(gradients.device)
    if free is None:
        return gradients.progress.micro_batch_tokens
    weights = held_bytes(gradients.model)
    trained = sum(to_local(p).nbytes for p in optimizer.weights.values())
    batches = gradients.batches(examples, gradients.ranks)
    return fitting_tokens(
        max([batch.ids.numel() for batch in batches], default=1),
        peak=result.peak_memory,
        held=weights + trained + optimizer.state_bytes,  # weights, gradients, moments
        room=free + weights,
    )
