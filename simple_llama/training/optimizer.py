"""AdamW and its learning rate."""

import math

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.adamw import adamw

from simple_llama.errors import InputError
from simple_llama.model.decoder import Decoder
from simple_llama.params import TrainParams

EPSILON = 1e-8
"""In AdamW's denominator."""


def trained(model: Decoder) -> dict[str, Parameter]:
    """The parameters that training changes, by name: all, or the adapters'."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class AdamW:
    """AdamW (https://arxiv.org/abs/1711.05101); matrices decay, but norms, biases and embeddings
    do not.

    torch.optim.AdamW without what surrounds its update: that imports PyTorch's compiler, which
    takes a training three seconds to start.
    """

    def __init__(self, model: Decoder, params: TrainParams) -> None:
        self.weights = trained(model)
        self.params = params
        self.lr = params.max_lr
        self.state: dict[str, dict[str, Tensor]] = {}
        """By parameter, from the first step on: exp_avg and exp_avg_sq, shaped as the parameter,
        and the number of steps, a float32 scalar."""
        self.decays = {
            name: p.ndim >= 2 and p is not model.embed_tokens.weight
            for name, p in self.weights.items()
        }

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter by its gradient."""
        self.make_state()
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
                eps=EPSILON,
                maximize=False,
            )

    def make_state(self) -> None:
        """As before the first step, where there is none yet."""
        if not self.state:
            self.state = {name: _no_moments(p) for name, p in self.weights.items()}

    def zero_grad(self) -> None:
        for weight in self.weights.values():
            weight.grad = None


def _no_moments(weight: Tensor) -> dict[str, Tensor]:
    moments = {key: torch.zeros_like(weight) for key in ("exp_avg", "exp_avg_sq")}
    return moments | {"step": torch.zeros((), device=weight.device)}


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
    """warmup_iterations, or all the steps of a training that a limit makes shorter than it.

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
