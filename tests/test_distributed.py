"""More than one device: whatever the ranks, one result; and what saves memory changes none."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simple_llama.data.batches import Rank, collate, cut, even_budget, supervised_tokens
from simple_llama.model.sharding import shard, whole
from simple_llama.training.distributed import ALONE, Ranks
from simple_llama.training.loop import train
from simple_llama.training.loss import summed_loss
from tests.ranks import together
from tests.test_training import PAD, Listener, data, examples, new_model, params, run

SETTINGS = params(
    epochs=2,
    eval_interval=3,
    sample_prompts=2,
    max_grad_norm=0.5,
    micro_batch_tokens=60,
    batch_size=5,
)


def trained(ranks: Ranks, **changes: Any) -> dict[str, Any]:
    """All that one rank sees of a training."""
    settings = dataclasses.replace(SETTINGS, **changes)
    model, listener = new_model(settings.dropout), Listener()
    if ranks.in_step:
        shard(model, "cpu")
    train(model, data(), settings, listener, ranks=ranks)
    return {
        "losses": [step.loss for step in listener.steps],
        "norms": [step.grad_norm for step in listener.steps],
        "validations": listener.validations,
        "samples": listener.samples,
        "lowerings": listener.lowerings,
        "weights": [whole(parameter).detach() for parameter in model.parameters()],
    }


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("of", [2, 4])
def test_the_number_of_ranks_changes_nothing(of: int, sharded: bool) -> None:
    """The last step of an epoch has two examples: of four ranks, two have nothing to do."""
    expected = trained(ALONE)
    for rank in together(of, trained, sharded=sharded):
        assert rank["losses"] == pytest.approx(expected["losses"], abs=1e-5)
        assert rank["norms"] == pytest.approx(expected["norms"], abs=1e-4)
        assert distance(rank["weights"], expected["weights"]) < 1e-4
        assert rank["samples"] == expected["samples"]
        for mine, theirs in zip(rank["validations"], expected["validations"], strict=True):
            assert mine == (theirs[0], pytest.approx(theirs[1], abs=1e-5), *theirs[2:])


def test_recomputed_blocks_keep_every_byte_and_hold_less_memory() -> None:
    plain, _, expected = run(params(dropout=0.2, activation_checkpointing="none"))
    model, _, result = run(params(dropout=0.2, activation_checkpointing="blocks"))
    assert result == expected
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert 2 * kept_for_backward(recompute=True) < kept_for_backward(recompute=False)


def kept_for_backward(*, recompute: bool) -> int:
    """Elements that autograd keeps of a forward pass, weights aside."""
    model = new_model()
    model.recompute_blocks = recompute
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() if tensor.data_ptr() not in weights else 0
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        summed_loss(model, collate(examples(8), np.arange(8), PAD, None))
    return kept


def short_of_memory(ranks: Ranks, most: int) -> dict[str, Any]:
    """A training in which rank 1 has room for so many tokens only."""

    def fails(model: Any, batch: Any, forward: Any) -> Tensor:
        if ranks.number == 1 and batch.ids.numel() > most:
            raise RuntimeError("can't allocate memory")
        return summed_loss(model, batch, forward)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simple_llama.training.gradients.summed_loss", fails)
        return trained(ranks, epochs=1)


@pytest.mark.slow
def test_out_of_memory_on_one_rank_lowers_the_micro_batches_of_all() -> None:
    expected = trained(ALONE, epochs=1)
    first, second = together(2, short_of_memory, 20)
    assert first["lowerings"] == second["lowerings"] != []
    for rank in first, second:
        assert rank["losses"] == pytest.approx(expected["losses"], abs=1e-5)
        assert distance(rank["weights"], expected["weights"]) < 1e-4


@given(
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=60),
    budget=st.integers(30, 120),
    of=st.integers(1, 5),
    in_step=st.booleans(),
)
def test_ranks_share_every_example_evenly(
    lengths: list[int], budget: int, of: int, in_step: bool
) -> None:
    sizes = np.array(lengths)
    groups = cut(sizes, np.arange(len(sizes)), even_budget(sizes, budget, None, of), None)
    costs = [len(group) * int(sizes[group[0]]) for group in groups]
    shares = [Rank(number=n, of=of, in_step=in_step).share(groups, costs) for n in range(of)]
    dealt = np.concatenate([np.concatenate(share) for share in shares if share])
    assert sorted(dealt.tolist()) == list(range(len(sizes)))
    loads = [
        sum(len(group) * int(sizes[group].max()) for group in share if len(group))
        for share in shares
    ]
    assert max(loads) - min(loads) <= max(costs), "no rank could hand a micro-batch over"
    if in_step:
        assert len({len(share) for share in shares}) == 1


def test_supervised_tokens_are_the_targets() -> None:
    tokens = examples(9)
    chosen = np.array([7, 2, 3])
    assert supervised_tokens(tokens, chosen) == len(collate(tokens, chosen, PAD, None).targets)


def test_an_idle_micro_batch_has_a_loss_and_gradients_of_zero() -> None:
    model = new_model()
    loss = summed_loss(model, collate(examples(2), np.zeros(0, np.int64), PAD, None))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    for parameter in model.parameters():
        assert parameter.grad is not None and not parameter.grad.any()
