"""Weights and moments of AdamW in 16 or 8 bits: nothing is lost on average, and little at once."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from simple_llama.errors import InputError
from simple_llama.model.decoder import Decoder
from simple_llama.params.train import TrainParams
from simple_llama.training import fine_tuning
from simple_llama.training import optimizer as optimizer_module
from simple_llama.training.distributed import SINGLE_PROCESS, Ranks
from simple_llama.training.loop import train
from simple_llama.training.optimizer import AdamW
from simple_llama.training.rounding import (
    BLOCK_SIZE,
    dequantize_8bit,
    dynamic_map,
    first_not_less,
    quantize_8bit,
    stochastic_round_bf16,
)
from tests.support.ranks import together
from tests.support.trainings import Listener, data, new_model, params

WAYS: list[dict[str, Any]] = [
    {"optimizer_state": "bf16"},
    {"optimizer_state": "8bit"},
    {"weights": "bf16", "precision": "bf16"},
    {"weights": "bf16", "precision": "bf16", "optimizer_state": "8bit"},
]


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@given(st.lists(st.floats(width=32), min_size=1, max_size=9), st.integers(0, 2**31))
def test_a_number_becomes_one_of_its_neighbours(numbers: list[float], seed: int) -> None:
    x = torch.tensor(numbers)
    found = stochastic_round_bf16(x, generator(seed)).float()
    bits = x.view(torch.int32)
    below = (bits & ~0xFFFF).view(torch.float32)
    above = ((bits & ~0xFFFF) + 0x10000).view(torch.float32)
    for number, one, low, high in zip(numbers, found.tolist(), below.tolist(), above.tolist()):
        if math.isfinite(number):
            assert one in (low, high) and (one == number or low != number)
        else:
            assert one == number or (math.isnan(one) and math.isnan(number))


@pytest.mark.parametrize("signed", [True, False])
def test_the_neighbours_in_8_bits_are_those_that_a_search_finds(signed: bool) -> None:
    """For each upper half of a float, at each level and beside it."""
    table = dynamic_map(signed, torch.device("cpu"))
    upper = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
    each = [(upper | lower).view(torch.float32) for lower in (0, 1, 0x7FFF, 0x8000, 0xFFFF)]
    beside = [torch.nextafter(table, torch.tensor(end)) for end in (-9.0, 9.0)]
    numbers = torch.cat([*each, table, *beside, torch.rand(10**5, generator=generator())])
    numbers = numbers[~(numbers.abs() > 1)]
    assert torch.equal(first_not_less(numbers, signed), torch.searchsorted(table, numbers).int())


def test_rounding_keeps_the_mean() -> None:
    x = torch.tensor([1 + 2**-11, -3.3, 1e-30, 0.1]).repeat_interleave(2**16)
    found = stochastic_round_bf16(x, generator()).float().view(4, -1).mean(1)
    assert found.tolist() == pytest.approx(x[:: 2**16].tolist(), rel=1e-4)
    x = torch.tensor([1.0, 0.123, -0.0123, 1e-5, -0.9]).repeat_interleave(2**16)
    codes, scales = quantize_8bit(x, True, generator())
    found = dequantize_8bit(codes, scales, True).view(5, -1).mean(1)
    # in blocks of one number each, which is its own scale, so nothing is rounded
    assert found.tolist() == pytest.approx(x[:: 2**16].tolist(), rel=1e-6)
    mixed = torch.tensor([1.0, 0.123, -0.0123, 1e-5] * 2**16)
    found = dequantize_8bit(*quantize_8bit(mixed, True, generator()), True).view(-1, 4).mean(0)
    assert found.tolist() == pytest.approx(mixed[:4].tolist(), rel=2e-3)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("size", [1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 1000])
def test_eight_bits_are_close_relative_to_their_block(size: int, signed: bool) -> None:
    table = dynamic_map(signed, torch.device("cpu"))
    assert len(set(table.tolist())) == 256 and table[-1] == 1
    x = torch.randn(size, generator=generator()) * 10.0 ** torch.randint(-4, 4, (size,))
    x = x if signed else x.abs()
    found = dequantize_8bit(*quantize_8bit(x, signed, generator()), signed)
    for start in range(0, size, BLOCK_SIZE):
        block, kept = (one[start : start + BLOCK_SIZE] for one in (x, found))
        scale = block.abs().max()
        # two levels of one decade are 1.4% (signed) of the next one apart, those of the last wider
        assert ((block - kept).abs() <= 0.02 * scale).all()
        large = block.abs() > 0.1 * scale
        assert ((block - kept).abs() <= 0.16 * block.abs())[large].all()
    nothing = torch.zeros(size)
    assert torch.equal(
        dequantize_8bit(*quantize_8bit(nothing, signed, generator()), signed), nothing
    )


def prepared(settings: TrainParams, model: Decoder | None = None) -> Decoder:
    model = model or new_model()
    fine_tuning.fine_tuning_method(settings, "base", Path("tokenizer")).prepare(model, settings)
    return model


def updated(
    settings: TrainParams, gradients: list[list[Tensor]], model: Decoder | None = None
) -> dict[str, Tensor]:
    """A model's weights after steps with these gradients."""
    optimizer = AdamW(prepared(settings, model), settings)
    for values in gradients:
        for weight, value in zip(optimizer.weights.values(), values, strict=True):
            weight.grad = value.to(weight.dtype)
        optimizer.step()
    return {name: weight.detach().float() for name, weight in optimizer.weights.items()}


def some_gradients(steps: int) -> list[list[Tensor]]:
    source = generator(1)
    shapes = [weight.shape for weight in new_model().parameters()]
    means = [torch.randn(shape, generator=source) for shape in shapes]
    return [
        [mean + torch.randn(mean.shape, generator=source) for mean in means] for _ in range(steps)
    ]


def test_unrounded_it_is_the_update_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, gradients = params(weight_decay=0.3), some_gradients(4)
    expected = updated(settings, gradients)

    def step(self: AdamW) -> None:
        steps = int(self.state["norm.weight"]["step"]) + 1
        for name, weight in self.weights.items():
            self._update(name, weight, steps, generator())

    monkeypatch.setattr(AdamW, "_step_in_float32", step)
    for span in (2**24, BLOCK_SIZE):
        monkeypatch.setattr(optimizer_module, "CHUNK_SIZE", span)
        found = updated(settings, gradients)
        for name, weight in expected.items():
            assert torch.allclose(found[name], weight, atol=1e-6), name


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_rounded_it_moves_the_weights_alike(way: dict[str, Any]) -> None:
    settings, gradients = params(max_lr=1e-3, min_lr=0.0), some_gradients(20)
    start = {name: weight.detach() for name, weight in new_model().named_parameters()}
    expected = updated(settings, gradients)
    found = updated(dataclasses.replace(settings, **way), gradients)
    for name, weight in expected.items():
        moved = weight - start[name]
        apart = (found[name] - weight).norm() / moved.norm()
        assert apart < 0.15, name


def test_small_updates_are_made_in_the_long_run() -> None:
    """Rounded to the nearest, each of them would be lost: the fault that stochastic rounding is
    against."""
    settings = params(weights="bf16", precision="bf16", max_lr=1e-5, min_lr=0.0, weight_decay=0.0)
    model = new_model()
    for weight in model.parameters():
        torch.nn.init.ones_(weight)
    gradients = [[torch.ones_like(weight) for weight in model.parameters()]] * 300
    found = updated(settings, gradients, model)
    nearest = torch.ones(())
    for _ in range(300):
        nearest = (nearest.float() - 1e-5).bfloat16()
    assert nearest == 1
    moved = torch.cat([weight.view(-1) for weight in found.values()]).mean()
    assert moved.item() == pytest.approx(1 - 300e-5, abs=3e-4)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_training_ends_alike(way: dict[str, Any]) -> None:
    losses = []
    for settings in (params(epochs=4), params(epochs=4, **way)):
        losses.append(train(prepared(settings), data(), settings, Listener()).val_loss)
    assert losses[1] == pytest.approx(losses[0], abs=0.03)


def test_it_takes_the_memory_that_it_says() -> None:
    for way, each in zip(WAYS, (4, 2 * (1 + 4 / BLOCK_SIZE), 8, 2 * (1 + 4 / BLOCK_SIZE))):
        settings = params(**way)
        optimizer = AdamW(new_model(), settings)
        optimizer.init_state()
        kept = sum(
            tensor.nbytes
            for state in optimizer.state.values()
            for key, tensor in state.items()
            if key != "step"
        )
        size = sum(weight.numel() for weight in optimizer.weights.values())
        assert optimizer.state_bytes == int(each * size)
        assert kept == pytest.approx(each * size, rel=0.02)


def trained(ranks: Ranks) -> list[dict[str, Any]]:
    found = []
    for way in WAYS:
        settings, listener = params(epochs=1, sample_prompts=0, **way), Listener()
        model = prepared(settings)
        train(model, data(), settings, listener, ranks=ranks)
        found.append(
            {
                "losses": [step.loss for step in listener.steps],
                "weights": [parameter.detach() for parameter in model.parameters()],
            }
        )
    return found


@pytest.mark.slow
def test_ranks_round_alike() -> None:
    """What is rounded at random is a function of (seed, step), not of the rank."""
    first, second = together(2, trained)
    alone = trained(SINGLE_PROCESS)
    for mine, theirs, single in zip(first, second, alone, strict=True):
        assert all(map(torch.equal, mine["weights"], theirs["weights"]))
        assert mine["losses"] == pytest.approx(single["losses"], abs=2e-2)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"precision": "bf16", "lora_rank": 4}, "weights: got 'bf16', wanted fp32 with lora_rank"),
        ({"precision": "fp32"}, "weights: got 'bf16', wanted fp32 with precision: fp32"),
        ({"precision": "bf16", "shard": "full"}, "weights: got 'bf16', wanted fp32 with shard"),
    ],
)
def test_what_does_not_go_together_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        params(weights="bf16", **values)
    with pytest.raises(InputError, match="optimizer_state: got '8bit', wanted fp32 with shard"):
        params(optimizer_state="8bit", shard="full")


def test_weights_in_bf16_need_a_device_that_computes_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fine_tuning, "uses_bf16", lambda device, precision: False)
    with pytest.raises(InputError, match="weights: got bf16, and precision: auto is fp32 on this"):
        prepared(params(weights="bf16", precision="auto"))
