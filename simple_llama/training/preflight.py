"""The preflight: before training begins, the step with the longest examples is computed once,
without an update. It shows whether memory suffices and how long the training will take."""

import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from simple_llama.data.batches import Indices, Plan, epoch_order
from simple_llama.model.decoder import Decoder
from simple_llama.training.optimizer import AdamW

MAX_USEFUL_TOKENS = 2**14
"""Tokens that keep a GPU busy; more at once are not faster."""
MEMORY_SHARE = 0.8
"""Of a GPU's memory that micro_batch_tokens: auto fills, as the longest step takes it."""
COMPILE_SECONDS = 15.0
"""Seconds: 11 to 13 were measured on an H200, of 24 and of 30 layers."""
COMPILE_GAIN = 0.04
"""Of a step's time, that compiling saves: 4% was measured there with 135M parameters, 25% with
1.3B."""


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What the longest step took."""

    longest: int
    """Tokens of its longest example."""
    micro_batch_tokens: int
    """With which it fitted."""
    packed: bool
    compiled: bool
    peak_memory: int
    """Bytes: of tensors on a GPU, of the process elsewhere; AdamW's moments included."""
    seconds: float
    """For this step."""
    seconds_left: float
    """For all steps, by their tokens; without validations."""


def longest_step(plan: Plan, lengths: Indices) -> int:
    """The first epoch's step (0, 1, ...) with the longest example; `lengths` in tokens."""
    order = epoch_order(plan.num_examples, plan.seed, 0)[: plan.steps * plan.examples_per_step]
    return int(np.argmax(lengths[order])) // plan.examples_per_step


def preflight(
    model: Decoder,
    optimizer: AdamW,
    gradients: Callable[[], int],
    *,
    packed: bool,
    compiled: bool,
    plan: Plan,
    lengths: Indices,
    steps_left: int,
    single_process: bool,
) -> Preflight:
    """Measure `gradients`, which computes those of the longest step and gives the
    micro_batch_tokens that it needed; the optimizer's memory is reserved meanwhile. single_process:
    no other rank computes with this one.

    It is computed twice: the first time includes what happens once only, such as allocations.
    """
    device = next(model.parameters()).device
    moments = 0 if optimizer.state else optimizer.state_bytes
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    reserve = torch.empty(moments, dtype=torch.uint8, device=device)
    gradients()
    # on a CPU not the time in which it waits for a thread that imports MLflow meanwhile
    clock = time.thread_time if device.type == "cpu" and single_process else time.perf_counter
    started = clock()
    budget = gradients()
    seconds = clock() - started
    del reserve
    step = lengths[plan.examples_at(longest_step(plan, lengths))]
    per_epoch = int(lengths[: plan.num_examples].sum())
    tokens_left = per_epoch * steps_left / plan.steps_per_epoch
    return Preflight(
        longest=int(step.max()),
        micro_batch_tokens=budget,
        packed=packed,
        compiled=compiled,
        # memory that was reserved but never touched is no part of a process's peak
        peak_memory=peak_memory(device) + (0 if device.type == "cuda" else moments),
        seconds=seconds,
        seconds_left=seconds * tokens_left / int(step.sum()),
    )


def fitting_tokens(tokens: int, *, peak: int, held: int, room: int) -> int:
    """micro_batch_tokens, a power of two, that fit into `room` bytes, where micro-batches of
    `tokens` took `peak`, of which `held` belong to the model and its optimizer."""
    most = (MEMORY_SHARE * room - held) / max(1, peak - held) * tokens
    return int(2 ** math.floor(math.log2(min(MAX_USEFUL_TOKENS, max(1, most)))))


def compilation_pays(device: torch.device, seconds_left: float) -> bool:
    """Whether compiled layers win back the time that compiling takes; on a CPU they lose it, for
    they do without model.kernels."""
    return device.type == "cuda" and seconds_left * COMPILE_GAIN > COMPILE_SECONDS


def peak_memory(device: torch.device) -> int:
    """Bytes at most so far: allocated on a GPU, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
