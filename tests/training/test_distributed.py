"""More than one device: whatever the ranks, one result; and what saves memory changes none."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from simple_llama.data.batches import (
    Rank,
    balanced_max_tokens,
    batch_by_size,
    collate,
    count_supervised,
)
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.tokens import Tokens
from simple_llama.errors import InputError
from simple_llama.evaluation.metrics import Evaluation, evaluate
from simple_llama.model.folder import load_model, save_model
from simple_llama.model.sharding import gather_full_tensors, shard, to_local
from simple_llama.params.evaluate import EvaluateParams
from simple_llama.params.reading import Params
from simple_llama.training.distributed import SINGLE_PROCESS, Ranks
from simple_llama.training.loop import train
from simple_llama.training.loss import summed_loss
from simple_llama.training.snapshot_files import read_snapshot, write_tensors
from simple_llama.training.state import Snapshot
from tests.support.models import random_model
from tests.support.ranks import LATENT, SETTINGS, distance, together, trained
from tests.support.tokenizer_kinds import TEXTS
from tests.support.trainings import COMMITTED, PAD, Listener, data, examples, new_model, params, run


def in_each_way(ranks: Ranks) -> list[dict[str, Any]]:
    """What else may be chosen, together with ranks."""
    ways: list[dict[str, Any]] = [
        {"model": {"tie_word_embeddings": True}, "activation_checkpointing": "blocks"},
        {"model": LATENT},
        {"model": {"model_type": "qwen3"}},
        {"precision": "bf16", "dynamic_padding": False},
    ]
    return [trained(ranks, **way) for way in ways]


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("of", [2, 4])
def test_the_number_of_ranks_changes_nothing(of: int, sharded: bool) -> None:
    """The last step of an epoch has two examples: of four ranks, two have nothing to do."""
    expected = trained(SINGLE_PROCESS)
    for rank in together(of, trained, sharded=sharded):
        assert rank["losses"] == pytest.approx(expected["losses"], abs=1e-5)
        assert rank["norms"] == pytest.approx(expected["norms"], abs=1e-4)
        assert distance(rank["weights"], expected["weights"]) < 1e-4
        assert rank["samples"] == expected["samples"]
        for mine, theirs in zip(rank["validations"], expected["validations"], strict=True):
            assert mine == (theirs[0], pytest.approx(theirs[1], abs=1e-5), *theirs[2:])


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_ranks_go_with_all_else(sharded: bool) -> None:
    """Tied embeddings, recomputed blocks, latent attention, normed queries and keys; bfloat16
    within its own precision."""
    expected = in_each_way(SINGLE_PROCESS)
    for rank in together(2, in_each_way, sharded=sharded):
        for mine, theirs, most in zip(rank, expected, (1e-5, 1e-5, 1e-5, 2e-2), strict=True):
            assert mine["losses"] == pytest.approx(theirs["losses"], abs=most)


def kept_and_continued(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """A training with dropout, and one that continues from what it wrote after step 4."""

    class Keeper(Listener):
        def on_step_end(self, snapshot: Callable[[], Snapshot], *, epoch_ended: bool) -> None:
            if snapshot().progress.step == 4:
                self.progress = copy.copy(snapshot().progress)
                write_tensors(snapshot().tensors, folder, ranks)

    settings, keeper, listener = dataclasses.replace(SETTINGS, dropout=0.3), Keeper(), Listener()
    models = [new_model(settings.dropout) for _ in range(2)]
    for model in models:
        if ranks.sharded:
            shard(model, "cpu")
    train(models[0], data(), settings, keeper, ranks=ranks)
    kept = read_snapshot(keeper.progress, folder, ranks)
    train(models[1], data(), settings, listener, kept, ranks)
    return {
        "losses": [step.loss for step in keeper.steps],
        "continued": [step.loss for step in listener.steps],
        "weights": [[to_local(p).detach() for p in model.parameters()] for model in models],
    }


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_ranks_continue_exactly_from_what_each_wrote(sharded: bool, tmp_path: Path) -> None:
    for rank in together(2, kept_and_continued, tmp_path / "state", sharded=sharded):
        assert rank["continued"] == rank["losses"][4:] != []
        whole_run, continued = rank["weights"]
        assert all(torch.equal(a, b) for a, b in zip(whole_run, continued, strict=True))
    files = sorted((tmp_path / "state").iterdir())
    assert len(files) == 2, "one of each rank"
    assert all(load_file(file) for file in files), "and nothing pickled"


def failing(ranks: Ranks) -> str:
    """What each rank raises when the second fails, while the others wait for it."""
    try:
        with ranks.propagate_errors():
            if ranks.rank == 1:
                raise InputError("no room")
            ranks.broadcast(0)
    except InputError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


@pytest.mark.slow
def test_what_ends_one_rank_ends_all_and_the_first_says_why() -> None:
    assert together(2, failing) == ["RankFailed: rank 1: no room", "InputError: no room"]


def sharded_folder(ranks: Ranks, base: Path, out: Path) -> int:
    """Load a model in parts and write it whole. Returns the bytes this rank holds."""
    model = load_model(base, sharded=True)
    if ranks.is_main:
        save_model(model, out)
    else:
        gather_full_tensors(model)
    return sum(to_local(parameter).nbytes for parameter in model.parameters())


@pytest.mark.slow
def test_a_sharded_model_is_loaded_in_parts_and_published_whole(tmp_path: Path) -> None:
    model = random_model()
    save_model(model, tmp_path / "base")
    held = together(2, sharded_folder, tmp_path / "base", tmp_path / "out", sharded=True)
    size = sum(parameter.nbytes for parameter in model.parameters())
    assert sum(held) == size and max(held) < 0.6 * size
    for file in (tmp_path / "base").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def evaluated(ranks: Ranks, tokenizer: Path) -> Evaluation:
    chat = ChatTokenizer.from_path(tokenizer, prompt_format="auto", system_prompt="s")
    pairs = chat.encode(
        [
            [{"role": "user", "content": text}, {"role": "assistant", "content": text[:9]}]
            for text in TEXTS * 3
        ],
        "last_reply",
    )
    model = random_model(vocab_size=chat.vocab_size, max_position_embeddings=256)
    settings = dataclasses.replace(
        Params(COMMITTED).section(EvaluateParams), device="cpu", precision="fp32"
    )
    return evaluate(model, Tokens.from_examples(pairs), chat, settings, ranks)


@pytest.mark.slow
def test_evaluation_by_ranks_is_that_by_one(tiny_tokenizer: Path) -> None:
    expected = evaluated(SINGLE_PROCESS, tiny_tokenizer)
    assert expected.replies and expected.matches
    for rank in together(3, evaluated, tiny_tokenizer):
        assert (rank.replies, rank.matches, rank.references) == (
            expected.replies,
            expected.matches,
            expected.references,
        )
        for name in ("loss", "tokens", "correct"):
            assert np.array_equal(getattr(rank.scores, name), getattr(expected.scores, name))


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
    model.checkpoint_blocks = recompute
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

    def fails(model: Any, batch: Any) -> Tensor:
        if ranks.rank == 1 and batch.ids.numel() > most:
            raise RuntimeError("can't allocate memory")
        return summed_loss(model, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simple_llama.training.gradients.summed_loss", fails)
        return trained(ranks, packing=False)


@pytest.mark.slow
def test_out_of_memory_on_one_rank_lowers_the_micro_batches_of_all() -> None:
    expected = trained(SINGLE_PROCESS)
    first, second = together(2, short_of_memory, 20)
    assert first["lowerings"] == second["lowerings"] != []
    for rank in first, second:
        assert rank["losses"] == pytest.approx(expected["losses"], abs=1e-5)
        assert distance(rank["weights"], expected["weights"]) < 1e-4


@given(
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=60),
    budget=st.integers(30, 120),
    of=st.integers(1, 5),
    sharded=st.booleans(),
)
def test_ranks_share_every_example_evenly(
    lengths: list[int], budget: int, of: int, sharded: bool
) -> None:
    sizes = np.array(lengths)
    groups = batch_by_size(
        sizes, np.arange(len(sizes)), balanced_max_tokens(sizes, budget, None, of), None
    )
    costs = [len(group) * int(sizes[group[0]]) for group in groups]
    shares = [
        Rank(rank=n, world_size=of, sharded=sharded).assigned(groups, costs) for n in range(of)
    ]
    dealt = np.concatenate([np.concatenate(share) for share in shares if share])
    assert sorted(dealt.tolist()) == list(range(len(sizes)))
    loads = [
        sum(len(group) * int(sizes[group].max()) for group in share if len(group))
        for share in shares
    ]
    assert max(loads) - min(loads) <= max(costs), "no rank could hand a micro-batch over"
    if sharded:
        assert len({len(share) for share in shares}) == 1


def test_supervised_tokens_are_the_targets() -> None:
    tokens = examples(9)
    chosen = np.array([7, 2, 3])
    assert count_supervised(tokens, chosen) == len(collate(tokens, chosen, PAD, None).targets)


def test_an_idle_micro_batch_has_a_loss_and_gradients_of_zero() -> None:
    model = new_model()
    loss = summed_loss(model, collate(examples(2), np.zeros(0, np.int64), PAD, None))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    for parameter in model.parameters():
        assert parameter.grad is not None and not parameter.grad.any()
