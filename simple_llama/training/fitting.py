"""Which settings of a training fit into so much memory: the least change of those in params.yaml.

Changes are tried in a fixed order, first what keeps the result to the last digit and costs time,
then what rounds, then what trains less:

    micro_batch_tokens  halved, down to the longest example
    activation_checkpointing: blocks
    optimizer_state: 8bit
    weights: bf16
    lora_rank: 16, instead of training all weights
    lora_base: nf4

Each is added to those before it until the training fits; then the ones that it does without are
taken back, the latest first.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from simple_llama.errors import InputError
from simple_llama.params.train import TrainParams

Change = Mapping[str, Any]
CHANGES: tuple[Change, ...] = (
    {"activation_checkpointing": "blocks"},
    {"optimizer_state": "8bit"},
    {"weights": "bf16"},
    {"lora_rank": 16, "weights": "fp32", "optimizer_state": "fp32"},
    {"lora_base": "nf4"},
)
Fits = Callable[[TrainParams], bool]


def fitting(params: TrainParams, fits: Fits, longest: int) -> dict[str, Any] | None:
    """Other values of params with which it fits, by name, none where it fits as it is; None: there
    are none among the changes. longest: tokens of the longest example."""
    smallest = min(params.tokens_at_once, _power_above(longest))
    taken: list[Change] = []
    if not fits(replace(params, micro_batch_tokens=smallest)):
        for change in CHANGES:
            if "lora_rank" in change and params.lora_rank:
                continue  # it has them
            if _changed(params, [*taken, change], smallest) is None:
                continue
            taken.append(change)
            if _fits(params, taken, smallest, fits):
                break
        else:
            return None
        for change in reversed(taken[:-1]):
            without = [one for one in taken if one is not change]
            if _fits(params, without, smallest, fits):
                taken = without
    found = {key: value for change in taken for key, value in change.items()}
    tokens = params.tokens_at_once
    while tokens > smallest and not _fits(params, taken, tokens, fits):
        tokens = max(smallest, tokens // 2)
    if tokens != params.tokens_at_once:
        found["micro_batch_tokens"] = tokens
    return {key: value for key, value in found.items() if value != getattr(params, key)}


def _fits(params: TrainParams, changes: list[Change], tokens: int, fits: Fits) -> bool:
    changed = _changed(params, changes, tokens)
    return changed is not None and fits(changed)


def _changed(params: TrainParams, changes: list[Change], tokens: int) -> TrainParams | None:
    """None where these settings refuse each other."""
    values = {key: value for change in changes for key, value in change.items()}
    try:
        return replace(params, **values, micro_batch_tokens=tokens)
    except InputError:
        return None


def _power_above(tokens: int) -> int:
    return 1 << max(0, tokens - 1).bit_length()
