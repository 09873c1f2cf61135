"""AdamW and its learning rate."""

import math
from collections.abc import Iterator
from hashlib import sha256

import torch
from torch import Generator, Tensor
from torch.nn import Parameter
from torch.optim.adamw import adamw

from simple_llama.errors import InputError
from simple_llama.model.decoder import Decoder
from simple_llama.model.sharding import to_local
from simple_llama.params.train import TrainParams
from simple_llama.training.moments import MOMENT_NAMES, MOMENTS
from simple_llama.training.rounding import stochastic_round_bf16

EPS = 1e-8
"""In AdamW's denominator."""
CHUNK_SIZE = 2**22
"""Weights that are updated at once where they or their moments are not held in float32: temporary
tensors take 33 to 41 bytes for each."""


def trainable_parameters(model: Decoder) -> dict[str, Parameter]:
    """The parameters that training changes, by name: all, or the adapters'."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class AdamW:
    """AdamW (https://arxiv.org/abs/1711.05101); matrices decay, but norms, biases and embeddings
    do not.

    torch.optim.AdamW without what surrounds its update: that imports PyTorch's compiler, which
    takes a training two seconds to start.
    """

    def __init__(self, model: Decoder, params: TrainParams) -> None:
        self.weights = trainable_parameters(model)
        self.params = params
        self.lr = params.max_lr
        self.moments = MOMENTS[params.optimizer_state]
        self.state: dict[str, dict[str, Tensor]] = {}
        """By parameter: its moments, and the number of steps made, a float32 scalar. Empty before
        the first step."""
        self.decays = {
            name: p.ndim >= 2 and p is not model.embed_tokens.weight
            for name, p in self.weights.items()
        }

    @property
    def state_bytes(self) -> int:
        """What the moments take on this rank."""
        each = 2 * self.moments.bytes_per_element
        return int(each * sum(to_local(p).numel() for p in self.weights.values()))

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """Scale the gradients to a global norm of at most max_norm; returns the norm before, a
        float32 scalar that may be sharded."""
        parameters = self.weights.values()
        if all(p.dtype == torch.float32 for p in parameters):
            norm: Tensor = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
            return norm
        gradients = [p.grad for p in parameters if p.grad is not None]
        norms = [torch.linalg.vector_norm(one, dtype=torch.float32) for one in gradients]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        for one in gradients:
            one.mul_((max_norm / (norm + 1e-6)).clamp_max(1.0))
        return norm

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter by its gradient."""
        self.init_state()
        if self.params.optimizer_state == "fp32" and self.params.weights == "fp32":
            self._step_in_float32()
            return
        steps_made = int(next(iter(self.state.values()))["step"])  # the same for each parameter
        for index, (name, weight) in enumerate(self.weights.items()):
            # a generator for each parameter: what one draws changes no other
            seed = sha256(f"{self.params.seed} {steps_made} {index}".encode()).digest()
            generator = Generator(weight.device).manual_seed(int.from_bytes(seed[:7]))
            self._update(name, weight, steps_made + 1, generator)

    def _step_in_float32(self) -> None:
        for decays in (True, False):
            names = [name for name in self.weights if self.decays[name] == decays]
            weights: list[Tensor] = [self.weights[name] for name in names]
            gradients = [p.grad for p in weights if p.grad is not None]
            assert len(gradients) == len(weights), names
            state = [self.state[name] for name in names]
            adamw(
                weights,
                gradients,
                [one["exp_avg"] for one in state],
                [one["exp_avg_sq"] for one in state],
                [],
                [one["step"] for one in state],
                fused=bool(weights) and weights[0].device.type in ("cpu", "cuda"),
                amsgrad=False,
                beta1=self.params.beta1,
                beta2=self.params.beta2,
                lr=self.lr,
                weight_decay=self.params.weight_decay if decays else 0.0,
                eps=EPS,
                maximize=False,
            )

    def _update(self, name: str, weight: Tensor, steps: int, generator: Generator) -> None:
        """The same update, computed in float32 a chunk at a time; weights and moments that are
        kept in fewer bits are rounded stochastically. steps: this one included."""
        state, moments, params = self.state[name], self.moments, self.params
        assert weight.grad is not None, name
        state["step"] += 1
        size = self.lr / (1 - params.beta1**steps)
        root = math.sqrt(1 - params.beta2**steps)
        flat, gradient = weight.view(-1), weight.grad.view(-1)
        for span in _chunks(weight.numel()):
            x, g = flat[span].float(), gradient[span].float()
            mean, square = (moments.read(state, moment, span) for moment in MOMENT_NAMES)
            mean = mean.lerp(g, 1 - params.beta1)
            square = square.mul(params.beta2).addcmul_(g, g, value=1 - params.beta2)
            if self.decays[name]:
                x = x * (1 - self.lr * params.weight_decay)
            x = x.addcdiv(mean, square.sqrt().div_(root).add_(EPS), value=-size)
            flat[span] = x if weight.dtype == torch.float32 else stochastic_round_bf16(x, generator)
            for moment, value in zip(MOMENT_NAMES, (mean, square)):
                moments.write(state, moment, span, value, generator)

    def init_state(self) -> None:
        """Make the state, of zeros, where there is none yet."""
        if not self.state:
            self.state = {
                name: self.moments.zeros(p) | {"step": torch.zeros((), device=p.device)}
                for name, p in self.weights.items()
            }

    def zero_grad(self) -> None:
        for weight in self.weights.values():
            weight.grad = None


def _chunks(size: int) -> Iterator[slice]:
    for start in range(0, size, CHUNK_SIZE):
        yield slice(start, min(start + CHUNK_SIZE, size))


def learning_rate(step: int, steps: int, params: TrainParams) -> float:
    """The learning rate of a step (0 to steps - 1): linear warmup to max_lr, then down to min_lr
    at the last step."""
    warmup = warmup_steps(steps, params)
    if step < warmup:
        return params.max_lr * (step + 1) / warmup
    if params.lr_schedule == "constant":
        return params.max_lr
    done = (step - warmup) / max(1, steps - 1 - warmup)  # 0 to 1
    left = (1 + math.cos(math.pi * done)) / 2 if params.lr_schedule == "cosine" else 1 - done
    return params.min_lr + (params.max_lr - params.min_lr) * left


def warmup_steps(steps: int, params: TrainParams) -> int:
    """warmup_iterations, or all steps where max_steps or max_train_examples leave fewer.

    Raises InputError where the warmup would not end within a training without a limit.
    """
    if params.warmup_iterations <= steps:
        return params.warmup_iterations
    if not params.is_limited:
        raise InputError(
            f"params.yaml: warmup_iterations: got {params.warmup_iterations}, "
            f"wanted at most the {steps} optimizer steps of this training"
        )
    return steps
