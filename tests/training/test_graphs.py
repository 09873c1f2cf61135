"""What CUDA graphs need, and do, without a GPU: fixed shapes change no loss, and work that is
replayed with other values in the same memory gives what was wanted of them."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simple_llama.data.batches import PAD_MULTIPLE, bucket_size, collate
from simple_llama.errors import InputError
from simple_llama.model import kernels, packing
from simple_llama.model.capture import Capture, Work
from simple_llama.model.decoder import Decoder
from simple_llama.training import cuda_graphs, loss
from simple_llama.training.cuda_graphs import CudaGraphs
from simple_llama.training.gradients import GradientAccumulator
from simple_llama.training.loop import train
from simple_llama.training.loss import summed_loss
from simple_llama.training.optimizer import AdamW
from tests.support.graphs import Recording, record, varlen_attn
from tests.support.models import tiny_config
from tests.support.ranks import LATENT, distance
from tests.support.trainings import PAD, Keeper, Listener, data, examples, new_model, params, run

EXAMPLES, LONGEST = 20, 30


@pytest.fixture(autouse=True)
def as_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own operations, not those for CPUs, and variable-length attention."""
    for name in ("uses_cpu_attention", "uses_cpu_kernels"):
        monkeypatch.setattr(kernels, name, lambda x: False)
    stand_in = SimpleNamespace(varlen_attn=varlen_attn)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", stand_in)
    monkeypatch.setattr(packing, "uses_varlen_kernel", lambda q, v: True)


def new_capture() -> Capture:
    return record


@given(count=st.integers(0, 10**6))
def test_few_sizes_of_little_padding(count: int) -> None:
    size = bucket_size(count)
    assert size % PAD_MULTIPLE == 0 and count <= size <= max(
        PAD_MULTIPLE, count + PAD_MULTIPLE, count * 9 / 8
    )
    assert bucket_size(size) == size


def test_there_are_eight_sizes_between_powers_of_two() -> None:
    assert len({bucket_size(count) for count in range(1025, 2049)}) == 8


def of(model: Decoder, batch: Any) -> list[Tensor]:
    mean = summed_loss(model, batch) / 50
    return [mean.detach(), *torch.autograd.grad(mean, list(model.parameters()))]


@pytest.mark.parametrize("variant", [{}, LATENT], ids=["grouped", "mla"])
@pytest.mark.parametrize("count", [1, 7, EXAMPLES])
@pytest.mark.parametrize("in_parts", [False, True])
def test_fixed_shapes_have_the_same_loss_and_gradients(
    variant: dict[str, Any],
    count: int,
    in_parts: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the loss is computed in parts."""
    if in_parts:
        monkeypatch.setattr(loss, "MAX_LOGITS", 97 * 3)
    model = Decoder(tiny_config(**variant)).train()
    model.init_weights(0, std=0.3)
    batch = collate(examples(EXAMPLES), np.arange(count), PAD, None, packing=True)
    fixed = batch.in_fixed_shape(EXAMPLES, LONGEST, PAD)
    assert fixed.offsets is not None and len(fixed.offsets) == EXAMPLES + 2
    assert int(fixed.offsets.diff().max()) <= fixed.longest
    assert distance(of(model, batch), of(model, fixed)) < 1e-5


def test_a_graph_serves_all_of_its_shape() -> None:
    """Each time with what is added to the gradients that are there."""
    model = Decoder(tiny_config()).train()
    model.init_weights(0, std=0.3)
    many, tokens = CudaGraphs(model, "fp32", new_capture), examples(60)
    expected: list[Tensor] = []
    total = torch.zeros(())
    for first in range(0, 40, 5):
        batch = collate(tokens, np.arange(first, first + 5), PAD, None, packing=True)
        total += many.compute(batch.in_fixed_shape(EXAMPLES, LONGEST, PAD), 1 / 50)
        parts = of(model, batch)
        expected = [a + b for a, b in zip(expected, parts, strict=True)] if expected else parts
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert distance([total, *gradients], expected) < 1e-5
    assert 1 <= len(many.known) <= 3


@pytest.mark.parametrize("limit", [0, 1])
def test_beyond_the_last_graph_the_bytes_are_the_same(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a training may capture other shapes first when it is continued."""
    found = []
    for count in (cuda_graphs.MAX_GRAPHS, limit):
        monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", count)
        model = Decoder(tiny_config(), dropout=0.2).train()
        model.init_weights(0, std=0.3)
        many, tokens = CudaGraphs(model, "fp32", new_capture), examples(60)
        torch.manual_seed(7)
        losses = []
        for size in (5, 40, 5, 20):
            batch = collate(tokens, np.arange(size), PAD, None, packing=True)
            losses.append(many.compute(batch.in_fixed_shape(60, LONGEST, PAD), 1 / 50))
        assert len(many.known) == min(count, 3)
        found.append([*losses, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_cleared_graphs_are_made_anew() -> None:
    model = Decoder(tiny_config()).train()
    model.init_weights(0, std=0.3)
    many = CudaGraphs(model, "fp32", new_capture)
    batch = collate(examples(9), np.arange(9), PAD, None, packing=True)
    batch = batch.in_fixed_shape(EXAMPLES, LONGEST, PAD)
    before = [many.compute(batch, 1 / 50), *many.gradients]
    model.zero_grad()
    many.clear()
    assert not many.known
    after = [many.compute(batch, 1 / 50), *many.gradients]
    assert all(map(torch.equal, before, after))


def weights(model: Decoder) -> list[Tensor]:
    return [p.detach() for p in model.parameters()]


def test_a_training_by_graphs_is_the_one_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        GradientAccumulator, "_graphs", lambda self: CudaGraphs(self.model, "fp32", new_capture)
    )
    settings: dict[str, Any] = {"batch_size": 8, "micro_batch_tokens": 70, "packing": True}
    model, heard, _ = run(params(cuda_graphs=True, **settings))
    plain, listener, _ = run(params(**settings))
    assert [step.loss for step in heard.steps] == pytest.approx(
        [step.loss for step in listener.steps], abs=1e-5
    )
    assert distance(weights(model), weights(plain)) < 1e-4


@pytest.mark.parametrize("most", [2, cuda_graphs.MAX_GRAPHS])
def test_continued_by_graphs_it_ends_with_the_same_bytes(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, and with graphs of other shapes than before."""
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", most)
    monkeypatch.setattr(
        GradientAccumulator, "_graphs", lambda self: CudaGraphs(self.model, "fp32", new_capture)
    )
    settings = params(cuda_graphs=True, packing=True, dropout=0.2, micro_batch_tokens=40)
    model, whole = new_model(0.2), Keeper()
    train(model, data(), settings, whole)
    assert len({round(step.loss, 6) for step in whole.steps}) == len(whole.snapshots) >= 10
    for snapshot in whole.snapshots[::4]:
        continued = new_model(0.2)
        train(continued, data(), settings, Listener(), snapshot)
        assert all(map(torch.equal, weights(model), weights(continued)))


def test_the_optimizer_needs_no_graph() -> None:
    """Its operations do not become more with the layers, as those of forward and backward do."""
    counts = []
    for layers in (2, 6):
        model = Decoder(tiny_config(num_hidden_layers=layers)).train()
        model.init_weights(0)
        batch = collate(examples(9), np.arange(9), PAD, None, packing=True)
        optimizer = AdamW(model, params())
        optimizer.init_state()
        with Recording() as gradients:
            summed_loss(model, batch.in_fixed_shape(EXAMPLES, LONGEST, PAD)).backward()  # type: ignore[no-untyped-call]
        with Recording() as update:
            optimizer.clip_grad_norm(1.0)
            optimizer.step()
        counts.append((len(gradients.calls), len(update.calls)))
    (_, few), (many, same) = counts
    assert few == same < many / 10
    assert many > 2 * counts[0][0]


def test_what_cannot_be_captured_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(work: Work) -> Work:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(
        GradientAccumulator, "_graphs", lambda self: CudaGraphs(self.model, "fp32", lambda: refused)
    )
    with pytest.warns(UserWarning, match=r"cuda_graphs: capturing failed, .* not permitted") as it:
        model, _, _ = run(params(cuda_graphs=True, packing=True))
    assert len(it) == 1
    plain, _, _ = run(params(packing=True))
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(plain), strict=True))


def test_where_there_are_none_they_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="cuda_graphs: got true, wanted false on cpu"):
        run(params(cuda_graphs=True))
    others: dict[str, Any] = {
        "num_devices": 2,
        "activation_checkpointing": "blocks",
        "packing": False,
        "dynamic_padding": False,
    }
    for key, value in others.items():
        with pytest.raises(InputError, match=f"cuda_graphs: got .*, wanted false with {key}"):
            params(cuda_graphs=True, **{key: value})
