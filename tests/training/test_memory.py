"""What a training will take of a device's memory is predicted before anything is loaded."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simple_llama.check import read_size
from simple_llama.data.tokens import Tokens
from simple_llama.errors import InputError
from simple_llama.model.activations import layer_bytes
from simple_llama.model.config import ModelConfig
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import autocast
from simple_llama.model.quantisation import held_bytes
from simple_llama.params.train import TrainParams
from simple_llama.training import estimate as estimates
from simple_llama.training.distributed import SINGLE_PROCESS
from simple_llama.training.estimate import Device, Estimate
from simple_llama.training.fine_tuning import fine_tuning_method
from simple_llama.training.fitting import fitting
from simple_llama.training.loop import Trainer
from simple_llama.training.loss import summed_loss
from simple_llama.training.memory import Footprint, Shape, _Sum, footprint, loads_of
from simple_llama.training.state import TrainingData
from tests.support.models import tiny_config
from tests.support.trainings import Listener, params

GB = 10**9
CPU = torch.device("cpu")


def config(**changes: object) -> ModelConfig:
    own: dict[str, object] = {
        "vocab_size": 2048,
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 2**15,
    }
    return tiny_config(**{**own, **changes})


def some_tokens(longest: int, count: int) -> Tokens:
    random = np.random.default_rng(0)
    lengths = random.integers(longest // 2, longest + 1, count)
    lengths[0] = longest
    return Tokens.from_examples(
        [(random.integers(0, 97, length), np.arange(length) >= length // 2) for length in lengths]
    )


def trainer(config: ModelConfig, settings: TrainParams, longest: int = 128) -> Trainer:
    model = Decoder(config, dropout=settings.dropout, fused=settings.use_flash_attention)
    model.init_weights(0)
    for parameter in model.parameters():  # bfloat16 holds them exactly
        parameter.data.copy_(parameter.data.bfloat16())
    fine_tuning_method(settings, "none", None).prepare(model, settings)  # type: ignore[arg-type]
    tokens = some_tokens(longest, settings.examples_per_step)
    data = TrainingData(train=tokens, val=tokens, pad_id=0, stop_ids=[])
    model.train()
    return Trainer(model, data, settings, Listener(), SINGLE_PROCESS)


def summed(one: Trainer, settings: TrainParams) -> _Sum:
    batches = one.gradients.batches(np.arange(settings.examples_per_step))
    half = settings.precision == "bf16"
    shape = Shape(one.model.config, exact_in_bf16=True)
    [load] = loads_of(batches)
    return _Sum(shape, settings, load, "cpu", half=half, packed=one.gradients.packing)


def predicted(one: Trainer, settings: TrainParams) -> Footprint:
    batches = one.gradients.batches(np.arange(settings.examples_per_step))
    half = settings.precision == "bf16"
    shape, packed = Shape(one.model.config, exact_in_bf16=True), one.gradients.packing
    return footprint(shape, settings, loads_of(batches), "cpu", half=half, packed=packed)


def saved(one: Trainer, settings: TrainParams) -> int:
    """Bytes of what the forward pass keeps, besides parameters."""
    weights = {p.untyped_storage().data_ptr() for p in one.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    [batch] = one.gradients.batches(np.arange(settings.examples_per_step))
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        autocast(CPU, settings.precision),
    ):
        loss = summed_loss(one.model, batch)
    assert loss.isfinite()
    return sum(kept.values())


GEMMA = {"norms": "both", "norm_offset": 1.0, "hidden_act": "gelu_pytorch_tanh"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("shape", "settings", "longest"),
    [
        ({}, {}, 128),
        ({"num_key_value_heads": 4}, {}, 512),
        ({}, {}, 1024),
        ({}, {"packing": False}, 128),
        ({}, {"dropout": 0.1}, 128),
        ({"qk_norm": "head"}, {}, 128),
        ({"norms": "after", "qk_norm": "width"}, {}, 128),
        (GEMMA, {}, 128),
        ({"fused_projections": True, "partial_rotary_factor": 0.5}, {}, 128),
        ({}, {"lora_rank": 4}, 128),
        ({}, {"lora_rank": 4, "lora_targets": "q_proj+v_proj", "dropout": 0.1}, 128),
        ({"attn_logit_softcapping": 50.0}, {}, 128),
        ({"attn_logit_softcapping": 50.0, "sliding_window": 64}, {"packing": False}, 512),
        ({"attn_logit_softcapping": 50.0}, {}, 1024),
        ({}, {"use_flash_attention": False}, 128),
        ({}, {"use_flash_attention": False}, 1024),
    ],
)
def test_what_a_layer_keeps_is_read_off_its_operations(
    shape: dict[str, Any], settings: dict[str, Any], longest: int, precision: str
) -> None:
    given = params(
        precision=precision,
        batch_size=1024 // longest,
        micro_batch_tokens=2048,
        max_seq_len=longest,
        **settings,
    )
    few, more = (trainer(config(**shape, num_hidden_layers=n), given, longest) for n in (2, 3))
    one = summed(more, given)
    expected = layer_bytes(more.model.config, 1, one.compute, one.load.lengths)
    expected += one._casts() // 3
    assert saved(more, given) - saved(few, given) == pytest.approx(expected, rel=0.02)


def peak(work: Callable[[], None]) -> int:
    """Bytes of tensors that it allocates, at most at once."""
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        work()
    assert profile.kineto_results is not None
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return int(max(itertools.accumulate(event.nbytes() for event in events)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ({}, {}),
        ({}, {"micro_batch_tokens": 512, "batch_size": 16}),
        ({"hidden_size": 384}, {"micro_batch_tokens": 256, "batch_size": 3}),
        ({}, {"precision": "bf16"}),
        ({}, {"precision": "bf16", "activation_checkpointing": "blocks"}),
        ({}, {"activation_checkpointing": "blocks"}),
        ({}, {"precision": "bf16", "lora_rank": 8}),
        ({}, {"optimizer_state": "8bit", "batch_size": 1}),
        ({}, {"precision": "bf16", "weights": "bf16", "batch_size": 1}),
        ({"vocab_size": 16384, "tie_word_embeddings": True}, {}),
        ({"vocab_size": 16384}, {"precision": "bf16", "micro_batch_tokens": 512, "batch_size": 16}),
        ({"vocab_size": 160_000, "num_hidden_layers": 2}, {"micro_batch_tokens": 2048}),
        ({"final_logit_softcapping": 30.0, "vocab_size": 16384}, {}),
        ({"attn_logit_softcapping": 50.0}, {"precision": "bf16"}),
        (
            {"attn_logit_softcapping": 50.0},
            {"precision": "bf16", "max_seq_len": 4096, "micro_batch_tokens": 4096, "batch_size": 1},
        ),
    ],
)
def test_the_peak_is_predicted_within_a_tenth(
    shape: dict[str, Any], settings: dict[str, Any]
) -> None:
    own = {"batch_size": 8, "micro_batch_tokens": 1024, "max_seq_len": 128, "warmup_iterations": 0}
    given = params(**{**own, **settings})
    one = trainer(config(**shape), given, given.max_seq_len)
    one.step()  # from now on there are moments
    moments = (tensor for state in one.optimizer.state.values() for tensor in state.values())
    held = held_bytes(one.model) + sum(tensor.nbytes for tensor in moments)
    found = predicted(one, given)
    assert found.least == pytest.approx(held, rel=0.001)
    assert found.peak == pytest.approx(held + peak(one.step), rel=0.1)


EIGHT = config(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
)
"""Llama 3's 8 billion."""


def of_eight(
    memory: int, check: Callable[[TrainParams], None] = lambda params: None, **settings: object
) -> Estimate:
    given = params(device="auto", precision="auto", max_seq_len=2048, batch_size=8, **settings)
    device, shape = Device.imagined(memory, given), Shape(EIGHT, exact_in_bf16=True)
    return Estimate(shape, given, some_tokens(2000, 16), device, check=check)


def test_bytes_of_eight_billion_weights() -> None:
    found = of_eight(200 * GB).footprint
    assert found.least == 12 * 8_030_261_248 and found.gradients == 4 * 8_030_261_248
    nf4 = of_eight(24 * GB, lora_rank=16, lora_base="nf4").footprint
    assert nf4.weights < 4 * 2 * 128_256 * 4096 + 0.52 * 7e9 + 4 * 42e6
    assert nf4.gradients == 4 * 41_943_040, "as peft counts them for rank 16 in all projections"


@pytest.mark.parametrize(
    ("memory", "wanted"),
    [
        (200, {}),
        (80, {"optimizer_state": "8bit", "weights": "bf16"}),
        (24, {"activation_checkpointing": "blocks", "lora_rank": 16}),
        (12, {"activation_checkpointing": "blocks", "lora_rank": 16, "lora_base": "nf4"}),
        (2, None),
    ],
)
def test_the_least_change_that_fits(memory: int, wanted: dict[str, object] | None) -> None:
    one = of_eight(memory * GB)
    found = fitting(one.params, lambda given: one.device.holds(one.of(given).peak), one.longest)
    assert found == wanted
    assert one.fits == (wanted == {})
    said = one.changes() if wanted is None else " and ".join(f"{k}: {v}" for k, v in wanted.items())
    assert said in one.verdict() or one.fits


def test_proposed_is_only_what_train_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(params: TrainParams) -> None:
        if params.lora_rank:
            raise InputError("lora_rank: got 16, wanted 0")

    assert "lora_rank" in of_eight(24 * GB).changes()
    assert of_eight(24 * GB, refuse).changes() == "no setting tried fits"
    monkeypatch.setattr(estimates, "has_library", lambda: False)
    assert of_eight(12 * GB).changes().endswith("lora_base: nf4 (after pip install -e '.[qlora]')")


def test_changes_are_taken_in_their_order_and_only_where_they_are_needed() -> None:
    def needs(**least: object) -> Callable[[TrainParams], bool]:
        return lambda given: (
            all(getattr(given, key) == value for key, value in least.items())
            and given.tokens_at_once <= 600
        )

    one = params(micro_batch_tokens=4096, precision="bf16")
    assert fitting(one, needs(), 300) == {"micro_batch_tokens": 512}
    assert fitting(one, needs(), 1300) is None, "the longest example is more than fits"
    rounded = fitting(one, needs(optimizer_state="8bit"), 300)
    assert rounded == {"optimizer_state": "8bit", "micro_batch_tokens": 512}
    unsharded = fitting(replace(one, shard="full"), needs(optimizer_state="8bit"), 300)
    assert unsharded is None, "what refuses another setting is not proposed"


def test_refused_is_only_what_cannot_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"wanted 96\.4 GB for weights and moments alone: it fits"):
        of_eight(80 * GB).check()
    note = of_eight(97 * GB).check()
    assert note is not None and note.startswith("note: the training may take at most 1")
    assert of_eight(300 * GB).check() is None
    tight = of_eight(165 * GB).check()
    assert (
        tight is not None and "free on such a device (cuda), 90% of which tensors can take" in tight
    )
    monkeypatch.setattr(estimates, "device_memory", lambda device: None)
    assert Device.real(CPU, params()).holds(10**15), "where it is not told nothing is said"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("24GB", 24 * GB),
        ("24 GB", 24 * GB),
        ("24GiB", 24 * 2**30),
        ("1.5 GB", 1.5 * GB),
        ("800MiB", 800 * 2**20),
        ("9999999GB", 9_999_999 * GB),
    ],
)
def test_sizes(text: str, wanted: float) -> None:
    assert read_size(text) == wanted


def test_sizes_are_said_with_a_unit_of_theirs() -> None:
    sizes = (12_000, 999_900, 2_750_000, 24 * GB, 9_999_999 * GB)
    said = ["12.0 kB", "999.9 kB", "2.8 MB", "24.0 GB", "9,999,999.0 GB"]
    assert [estimates.size(one) for one in sizes] == said


@pytest.mark.parametrize(
    "text", ["", "24", "24gb", "24G", "24g", "-1GB", "0GB", "0.0MB", "nanGB", "1e3GB", "٣GB"]
)
def test_a_size_without_its_unit_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--memory: got .*, wanted a size such as 24GB"):
        read_size(text)
