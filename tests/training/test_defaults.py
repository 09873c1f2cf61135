"""What `auto` stands for, with devices of any memory and speed."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from simple_llama.data.batches import MicroBatch
from simple_llama.errors import InputError
from simple_llama.evaluation import metrics
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import autocast, is_deterministic, use_deterministic_algorithms
from simple_llama.params.evaluate import EvaluateParams
from simple_llama.params.execution import AUTO_TOKENS
from simple_llama.params.reading import Params
from simple_llama.training import auto_params, gradients, preflight
from simple_llama.training.console import describe_micro_batches
from simple_llama.training.distributed import Ranks
from simple_llama.training.launch import run_on_devices
from simple_llama.training.loop import train
from simple_llama.training.loss import summed_loss
from simple_llama.training.preflight import MAX_USEFUL_TOKENS, compilation_pays, fitting_tokens
from simple_llama.training.state import Snapshot
from tests.support.models import random_model
from tests.support.trainings import COMMITTED, Listener, data, new_model, params, run

GB = 10**9
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("room", "tokens"),
    [
        (140 * GB, MAX_USEFUL_TOKENS),
        (80 * GB, MAX_USEFUL_TOKENS),
        (24 * GB, 2**13),
        (16 * GB, 2**11),
        (8 * GB, 1),  # what is held does not even leave a fifth free
    ],
)
def test_tokens_that_fit(room: int, tokens: int) -> None:
    """10 GB of weights, gradients, moments; 1 MB a token: MEMORY_SHARE of the room holds them."""
    found = fitting_tokens(2000, peak=12 * GB, held=10 * GB, room=room)
    assert found == tokens
    assert (
        found in (1, MAX_USEFUL_TOKENS) or 10 * GB + found * 10**6 <= preflight.MEMORY_SHARE * room
    )
    assert (
        found in (MAX_USEFUL_TOKENS, 1)
        or 10 * GB + 2 * found * 10**6 > preflight.MEMORY_SHARE * room
    )


def test_compilation_has_to_pay() -> None:
    assert not compilation_pays(CPU, 10**6)
    assert not compilation_pays(CUDA, 60)
    assert compilation_pays(CUDA, 3600)


def test_on_a_cpu_auto_is_what_it_was() -> None:
    auto, heard, result = run(params(micro_batch_tokens="auto", enable_compilation="auto"))
    fixed, _, expected = run(params(micro_batch_tokens=2048, enable_compilation=False))
    assert (heard.preflight.micro_batch_tokens, AUTO_TOKENS) == (2048, 2048)
    assert describe_micro_batches(heard.preflight) == (
        "micro-batches of up to 2,048 tokens, packed, not compiled"
    )
    assert result == expected
    for mine, theirs in zip(auto.parameters(), fixed.parameters(), strict=True):
        assert torch.equal(mine, theirs)


class Keeper(Listener):
    """Keeps the snapshot after a step."""

    def on_step_end(self, snapshot: Any, *, epoch_ended: bool) -> None:
        now = snapshot()
        if now.progress.step == 3:
            tensors = {name: tensor.clone() for name, tensor in now.tensors.items()}
            self.kept = Snapshot(copy.copy(now.progress), tensors)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A device with 'free' bytes, of which each token of a micro-batch takes 'a token'."""
    has = {"free": 10**6, "a token": 10**3, "largest": 0}

    def counted(model: Decoder, batch: MicroBatch) -> torch.Tensor:
        has["largest"] = batch.ids.numel()
        return summed_loss(model, batch)

    # without the moments, which the process of a CPU has not touched yet
    held = 2 * sum(p.nbytes for p in new_model().parameters())
    monkeypatch.setattr(gradients, "summed_loss", counted)
    monkeypatch.setattr(auto_params, "free_memory", lambda device: has["free"])
    monkeypatch.setattr(
        preflight, "peak_memory", lambda device: held + has["largest"] * has["a token"]
    )
    return has


def test_memory_decides_once(device: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss stays the same, and who continues goes on with what was found."""
    settings = params(micro_batch_tokens="auto", batch_size=8, packing=True)
    device["free"] = 8 * 10**6
    keeper = Keeper()
    train(new_model(), data(), settings, keeper)
    found = keeper.kept.progress.micro_batch_tokens
    assert found == keeper.preflight.micro_batch_tokens == 4096
    device["free"] = 100 * 10**6
    again = Listener()
    train(new_model(), data(), settings, again, keeper.kept)
    assert again.preflight.micro_batch_tokens == found
    _, heard, _ = run(replace(settings, micro_batch_tokens=100))
    assert [step.loss for step in keeper.steps] == pytest.approx(
        [step.loss for step in heard.steps], abs=1e-5
    )


def test_a_training_that_pays_is_compiled_and_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **_: real(f, backend="eager", dynamic=True))
    monkeypatch.setattr(auto_params, "compilation_pays", lambda device, seconds: seconds > 0)
    settings, keeper = params(enable_compilation="auto"), Keeper()
    train(new_model(), data(), settings, keeper)
    assert keeper.preflight.compiled and keeper.kept.progress.compiled
    monkeypatch.setattr(auto_params, "compilation_pays", lambda device, seconds: False)
    again = Listener()
    train(new_model(), data(), settings, again, keeper.kept)
    assert again.preflight.compiled, "decided before the first step"
    assert [step.loss for step in again.steps] == [step.loss for step in keeper.steps][3:]


def test_deterministic_decides_nothing_by_measuring(
    device: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto_params, "compilation_pays", lambda device, seconds: True)
    settings = params(micro_batch_tokens="auto", enable_compilation="auto", deterministic=True)
    device["free"] = 10**9
    _, heard, _ = run(settings)
    assert heard.preflight.micro_batch_tokens == AUTO_TOKENS
    assert not heard.preflight.compiled
    monkeypatch.setattr(metrics, "free_memory", lambda device: 10**9)
    evaluation = replace(Params(COMMITTED).section(EvaluateParams), deterministic=True)
    assert metrics.tokens_per_batch(random_model(), evaluation) == AUTO_TOKENS


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    use_deterministic_algorithms()
    yield
    torch.use_deterministic_algorithms(False)


def test_a_stage_is_told_before_it_computes(deterministic: None) -> None:
    torch.use_deterministic_algorithms(False)
    seen: list[bool] = []

    def work(device: torch.device, ranks: Ranks) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())

    for wanted in (False, True):
        run_on_devices("stages.train", params(deterministic=wanted), work, share=True)
    assert seen == [False, True]


def test_deterministic_algorithms_train_the_same_on_a_cpu(deterministic: None) -> None:
    assert is_deterministic(CUDA)
    mine, _, _ = run(params(dropout=0.2, deterministic=True))
    torch.use_deterministic_algorithms(False)
    plain, _, _ = run(params(dropout=0.2))
    for one, other in zip(mine.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_operation_without_a_deterministic_algorithm_is_named(
    deterministic: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def putting(model: Decoder, batch: MicroBatch) -> torch.Tensor:
        return torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0])).sum()

    monkeypatch.setattr(gradients, "summed_loss", putting)
    with pytest.raises(
        InputError,
        match=r"deterministic: got true, wanted false on cpu: put_.* has no deterministic",
    ):
        run(params(deterministic=True))


def test_on_cuda_no_attention_plans_for_each_length() -> None:
    """PyTorch's switches, which exist without a GPU too."""
    enabled: Any = torch.backends.cuda
    before = enabled.cudnn_sdp_enabled()
    with autocast(CUDA, "fp32"):
        assert enabled.flash_sdp_enabled() and not enabled.cudnn_sdp_enabled()
    assert enabled.cudnn_sdp_enabled() == before


@pytest.mark.parametrize("free", [None, 10**6, 10**8, 10**12])
def test_evaluation_fills_the_memory_there_is(
    free: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "free_memory", lambda device: free)
    settings = Params(COMMITTED).section(EvaluateParams)
    model = random_model()
    found = metrics.tokens_per_batch(model, replace(settings, micro_batch_tokens="auto"))
    config = model.config
    a_token = 4 * (
        2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
        + 8 * config.hidden_size
        + 4 * config.intermediate_size
    )
    assert found == int(np.clip((free or 0) * 0.5 / a_token, 2048, 2**17))
    assert metrics.tokens_per_batch(model, replace(settings, micro_batch_tokens=7)) == 7
