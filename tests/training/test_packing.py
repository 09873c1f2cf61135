"""Packed examples are computed as if each were alone, whichever attention computes them."""

import inspect
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simple_llama.data import batches
from simple_llama.data.batches import PAD_MULTIPLE, batch_by_size, collate, micro_batches
from simple_llama.errors import InputError
from simple_llama.model import packing
from simple_llama.model.attention import attend
from simple_llama.model.decoder import Decoder
from simple_llama.model.lora import LoraConfig, add_adapters
from simple_llama.model.packing import Packed
from simple_llama.training import gradients
from simple_llama.training.distributed import SINGLE_PROCESS, Ranks
from simple_llama.training.loss import summed_loss
from simple_llama.training.state import Progress
from tests.support.models import random_model, tiny_config
from tests.support.ranks import LATENT, distance, together, trained
from tests.support.trainings import (
    PAD,
    Listener,
    by_definition,
    data,
    examples,
    params,
    run,
    short_of_memory,
)

EXAMPLES = np.arange(7)
WHOLE = 10_000
"""A budget that cuts nothing."""


@given(
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=40),
    budget=st.integers(1, 120),
)
def test_a_cut_holds_each_example_once_and_as_many_as_fit(lengths: list[int], budget: int) -> None:
    sizes = np.array(lengths)
    groups = batch_by_size(sizes, np.arange(len(sizes)), budget, None, packing=True)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(sizes)))
    in_order = [int(size) for group in groups for size in sizes[group]]
    assert in_order == sorted(lengths, reverse=True)
    for group, after in zip(groups, [*groups[1:], None], strict=True):
        assert len(group) == 1 or sizes[group].sum() <= budget
        if after is not None:
            assert sizes[group].sum() + sizes[after[0]] > budget


@pytest.mark.parametrize("budget", [1, 60, WHOLE])
def test_a_batch_is_its_examples_end_to_end(budget: int) -> None:
    tokens, seen = examples(7), []
    for batch in micro_batches(tokens, EXAMPLES, max_tokens=budget, pad_id=PAD, packing=True):
        assert batch.offsets is not None
        assert batch.ids.shape == (1, batch.offsets[-1])
        assert batch.offsets[-1] % PAD_MULTIPLE == 0
        assert batch.offsets[-1] - batch.offsets[-2] < PAD_MULTIPLE
        assert (batch.ids[0, batch.offsets[-2] :] == PAD).all()
        assert batch.longest == batch.offsets.diff().max()
        for place, example in enumerate(batch.examples):
            first, end = batch.offsets[place : place + 2].tolist()
            start, stop = tokens.starts[example : example + 2]
            assert batch.ids[0, first:end].tolist() == tokens.ids[start : stop - 1].tolist()
            own = batch.example_index == place
            assert (batch.positions[own] - first).tolist() == np.flatnonzero(
                tokens.mask[start + 1 : stop]
            ).tolist()
            assert (
                batch.targets[own].tolist()
                == tokens.ids[start:stop][tokens.mask[start:stop] == 1].tolist()
            )
            seen.append(int(example))
    assert sorted(seen) == EXAMPLES.tolist()


NORMED = {"model_type": "qwen3"}


def loss_and_gradients(model: Decoder, *, packed: bool) -> list[Tensor]:
    batch = collate(examples(7), EXAMPLES, PAD, None, packing=packed)
    loss = summed_loss(model, batch) / len(batch.targets)
    trained = [p for p in model.parameters() if p.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, trained)]


@pytest.mark.parametrize(
    "variant",
    [{"num_hidden_layers": 3}, {"num_key_value_heads": 1}, LATENT, NORMED],
    ids=["3", "1", "mla", "qwen3"],
)
@pytest.mark.parametrize("fused", [True, False])
def test_loss_and_gradients_are_those_of_padded_examples(
    variant: dict[str, Any], fused: bool
) -> None:
    model = Decoder(tiny_config(**variant), fused=fused)
    model.init_weights(0, std=0.3)
    padded = loss_and_gradients(model, packed=False)
    assert distance(padded, loss_and_gradients(model, packed=True)) < 1e-5
    model.checkpoint_blocks = True
    assert distance(padded, loss_and_gradients(model, packed=True)) < 1e-5


def weights(model: Decoder) -> list[Tensor]:
    return [p.detach() for p in model.parameters()]


def test_adapters_have_the_same_gradients() -> None:
    model = random_model()
    add_adapters(
        model, LoraConfig(rank=2, alpha=4.0, dropout=0.0, targets=("q_proj", "up_proj")), seed=0
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.fill_(0.1)
    padded = loss_and_gradients(model, packed=False)
    assert distance(padded, loss_and_gradients(model, packed=True)) < 1e-5


def test_no_example_sees_another() -> None:
    """Not a bit of the others' hidden states changes with an example's tokens."""
    model = random_model()
    batch = collate(examples(7), EXAMPLES, PAD, None, packing=True)
    assert batch.offsets is not None
    packed = Packed(batch.offsets, batch.longest)
    first, end = batch.offsets[3:5].tolist()
    changed = batch.ids.clone()
    changed[0, first:end] = (changed[0, first:end] + 1) % 97
    with torch.inference_mode():
        differs = (model(batch.ids, packed=packed) != model(changed, packed=packed)).any(dim=-1)[0]
    assert differs.nonzero().flatten().tolist() == list(range(first, end))


def test_a_training_with_packing_is_the_padded_one() -> None:
    padded, heard, expected = run(params(batch_size=8, micro_batch_tokens=70))
    model, listener, result = run(params(batch_size=8, micro_batch_tokens=70, packing=True))
    for mine, theirs in zip(listener.steps, heard.steps, strict=True):
        assert (mine.loss, mine.grad_norm) == pytest.approx(
            (theirs.loss, theirs.grad_norm), abs=1e-5
        )
    assert result.val_loss == pytest.approx(expected.val_loss, abs=1e-5)
    assert distance(weights(model), weights(padded)) < 1e-4


def test_too_little_memory_halves_the_packed_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "PAD_MULTIPLE", 1)
    settings = params(epochs=1, batch_size=8, micro_batch_tokens=600, packing=True)
    _, heard, _ = run(settings)
    limited = short_of_memory(50, torch.OutOfMemoryError, "CUDA out of memory")
    monkeypatch.setattr(gradients, "summed_loss", limited)
    _, listener, _ = run(settings)
    assert listener.lowerings == [300, 150, 75, 37]
    assert listener.preflight.micro_batch_tokens == 37
    losses = [[step.loss for step in one.steps] for one in (listener, heard)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_packing_and_padding_to_the_full_length_contradict_each_other() -> None:
    with pytest.raises(
        InputError, match="packing: got true, wanted auto or false with dynamic_padding"
    ):
        params(packing=True, dynamic_padding=False)


@pytest.mark.parametrize(
    ("device", "precision", "capability", "packs"),
    [
        ("cpu", "fp32", 0, True),
        ("cuda", "bf16", 9, True),
        ("cuda", "bf16", 7, False),  # no kernel
        ("cuda", "fp32", 9, False),
        ("mps", "bf16", 0, False),
    ],
)
def test_auto_packs_where_attention_skips_what_is_hidden(
    device: str, precision: str, capability: int, packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = SimpleNamespace(major=capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)

    def chosen(**changes: Any) -> bool:
        settings = params(precision=precision, **changes)
        progress = Progress(micro_batch_tokens=64, next_sample=1, sample_interval=1)
        one = gradients.GradientAccumulator(
            random_model(), data(), settings, progress, Listener(), SINGLE_PROCESS
        )
        one.device = torch.device(device)
        return one.packing

    assert chosen() is packs
    assert not chosen(dynamic_padding=False) and not chosen(use_flash_attention=False)
    assert chosen(packing=True) and not chosen(packing=False)


def test_auto_asks_for_a_kernel_of_the_widest_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(major=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    for width, packs in ((packing.MAX_HEAD_DIM, True), (packing.MAX_HEAD_DIM + 8, False)):
        config = tiny_config(**LATENT)
        assert config.mla is not None
        model = Decoder(replace(config, mla=replace(config.mla, v_head_dim=width)))
        progress = Progress(micro_batch_tokens=64, next_sample=1, sample_interval=1)
        settings = params(precision="bf16")
        one = gradients.GradientAccumulator(
            model, data(), settings, progress, Listener(), SINGLE_PROCESS
        )
        one.device = torch.device("cuda")
        assert one.packing is packs


def packed_ways(ranks: Ranks) -> list[dict[str, Any]]:
    return [trained(ranks, packing=True), trained(ranks, packing=True, model=LATENT)]


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_ranks_share_packed_examples(sharded: bool) -> None:
    """The last step has two examples of several ranks' budgets: some have nothing to do."""
    expected = [trained(SINGLE_PROCESS), trained(SINGLE_PROCESS, model=LATENT)]
    for rank in together(3, packed_ways, sharded=sharded):
        for mine, theirs in zip(rank, expected, strict=True):
            assert mine["losses"] == pytest.approx(theirs["losses"], abs=1e-5)
            assert distance(mine["weights"], theirs["weights"]) < 1e-4


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention takes the way through varlen_attn, which computes here by its definition."""
    stand_in = SimpleNamespace(varlen_attn=by_definition)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", stand_in)
    monkeypatch.setattr(packing, "uses_varlen_kernel", lambda q, v: True)


@pytest.mark.parametrize(
    ("heads", "widths"), [((4, 4), (8, 8)), ((4, 2), (8, 8)), ((2, 1), (6, 5)), ((2, 2), (5, 12))]
)
@pytest.mark.parametrize("offsets", [[0, 1], [0, 5, 6, 9], [0, 3, 3, 8]])
@pytest.mark.parametrize("window", [None, 1, 2])
def test_pytorchs_variable_length_attention_is_called_as_it_wants(
    heads: tuple[int, int],
    widths: tuple[int, int],
    offsets: list[int],
    window: int | None,
    as_on_a_gpu: None,
) -> None:
    """Also one token, an example without any, and heads of widths that it does not compute."""
    (H, G), (K, W), N = heads, widths, offsets[-1]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, count, N, width, generator=generator)
        for count, width in ((H, K), (G, K), (G, W))
    )
    starts = torch.tensor(offsets, dtype=torch.int32)
    packed = Packed(starts, int(starts.diff().max()))
    by_mask = attend(q, k, v, packed, fused=False, window=window)
    assert (attend(q, k, v, packed, fused=True, window=window) - by_mask).abs().max() < 1e-6


@pytest.mark.parametrize("variant", [{}, LATENT], ids=["grouped", "mla"])
def test_a_model_through_variable_length_attention(
    variant: dict[str, Any], as_on_a_gpu: None
) -> None:
    model = Decoder(tiny_config(**variant))
    model.init_weights(0, std=0.3)
    padded = loss_and_gradients(model, packed=False)
    assert distance(padded, loss_and_gradients(model, packed=True)) < 1e-5


@pytest.mark.slow
def test_the_real_one_takes_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward through its operators' shapes, without their kernels."""
    from torch.nn.attention.varlen import varlen_attn

    inspect.signature(varlen_attn).bind(*range(7), scale=1.0, window_size=(-1, 0), enable_gqa=True)
    monkeypatch.setattr(packing, "uses_varlen_kernel", lambda q, v: True)
    with torch.device("meta"):
        q, k, v = (
            torch.empty(1, heads, 9, 8, dtype=torch.bfloat16, requires_grad=True)
            for heads in (4, 2, 2)
        )
        packed = Packed(torch.empty(4, dtype=torch.int32), 5)
    out = attend(q, k, v, packed, fused=True)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    for x, gradient in zip((q, k, v), torch.autograd.grad(out.sum(), (q, k, v)), strict=True):
        assert gradient.shape == x.shape
