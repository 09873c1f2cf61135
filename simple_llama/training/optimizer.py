"""AdamW and its learning rate."""

import math

import torch

from simple_llama.errors import InputError
from simple_llama.model.decoder import Decoder
from simple_llama.params import TrainParams


def adamw(model: Decoder, params: TrainParams) -> torch.optim.AdamW:
    """AdamW (https://arxiv.org/abs/1711.05101); matrices decay, but norms, biases and
    embeddings do not."""
    embedding = model.embed_tokens.weight
    trained = [p for p in model.parameters() if p.requires_grad]
    decays = [p for p in trained if p.ndim >= 2 and p is not embedding]
    others = [p for p in trained if p.ndim < 2 or p is embedding]
    groups = [
        {"params": decays, "weight_decay": params.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    fused = embedding.device.type in ("cpu", "cuda")
    return torch.optim.AdamW(
        groups, lr=params.max_lr, betas=(params.beta1, params.beta2), fused=fused
    )


def learning_rate(step: int, steps: int, params: TrainParams) -> float:
    """The learning rate of a step (0 to steps - 1): linear warmup to max_lr, then down to min_lr
    at the last step."""
    warmup = params.warmup_iterations
    if step < warmup:
        return params.max_lr * (step + 1) / warmup
    if params.lr_schedule == "constant":
        return params.max_lr
    done = (step - warmup) / max(1, steps - 1 - warmup)  # 0 to 1
    left = (1 + math.cos(math.pi * done)) / 2 if params.lr_schedule == "cosine" else 1 - done
    return params.min_lr + (params.max_lr - params.min_lr) * left


def check_warmup(steps: int, params: TrainParams) -> None:
    """Raises InputError where the warmup would not end within the training."""
    if params.warmup_iterations > steps:
        raise InputError(
            f"params.yaml: warmup_iterations: got {params.warmup_iterations}, "
            f"wanted at most the {steps} optimizer steps of this training"
        )
