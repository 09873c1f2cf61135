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
from simple_llama.model.decoder import Decoder
from simple_llama.training import cuda_graphs, loss
from simple_llama.training.cuda_graphs import CudaGraphs, Work
from simple_llama.training.gradients import GradientAccumulator
from simple_llama.training.loss import summed_loss
from tests.support.models import tiny_config
from tests.support.ranks import LATENT, distance
from tests.support.trainings import PAD, by_definition, examples, params, run

EXAMPLES, LONGEST = 20, 30


@pytest.fixture(autouse=True)
def as_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own operations, not those for CPUs."""
    for name in ("uses_cpu_attention", "uses_cpu_kernels"):
        monkeypatch.setattr(kernels, name, lambda x: False)


def replayed(work: Work) -> Work:
    """For a captured graph: the same work again, in the same memory."""
    work()
    return work


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
    """Through variable-length attention, also where the loss is computed in parts."""
    stand_in = SimpleNamespace(varlen_attn=by_definition)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", stand_in)
    monkeypatch.setattr(packing, "uses_varlen_kernel", lambda q, v: True)
    if in_parts:
        monkeypatch.setattr(loss, "MAX_LOGITS", 97 * 3)
    model = Decoder(tiny_config(**variant)).train()
    model.init_weights(0, std=0.3)
    batch = collate(examples(EXAMPLES), np.arange(count), PAD, None, packing=True)
    fixed = batch.in_fixed_shape(EXAMPLES, LONGEST, PAD)
    assert fixed.offsets is not None and len(fixed.offsets) == EXAMPLES + 2
    assert int(fixed.offsets.diff().max()) <= fixed.longest
    assert distance(of(model, batch), of(model, fixed)) < 1e-5


def test_a_graph_serves_all_of_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time with what is added to the gradients that are there."""
    model = Decoder(tiny_config()).train()
    model.init_weights(0, std=0.3)
    many, tokens = CudaGraphs(model, "fp32", replayed), examples(60)
    expected: list[Tensor] = []
    total = torch.zeros(())
    for first in range(0, 40, 5):
        batch = collate(tokens, np.arange(first, first + 5), PAD, None, packing=True)
        found = many.compute(batch.in_fixed_shape(EXAMPLES, LONGEST, PAD), 1 / 50)
        assert found is not None
        total += found
        parts = of(model, batch)
        expected = [a + b for a, b in zip(expected, parts, strict=True)] if expected else parts
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert distance([total, *gradients], expected) < 1e-5
    assert 1 <= len(many.known) <= 3
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", len(many.known))
    large = collate(tokens, np.arange(20), PAD, None, packing=True)
    assert many.compute(large.in_fixed_shape(EXAMPLES, LONGEST, PAD), 1.0) is None
    many.clear()
    assert many.compute(large.in_fixed_shape(EXAMPLES, LONGEST, PAD), 1.0) is not None


def weights(model: Decoder) -> list[Tensor]:
    return [p.detach() for p in model.parameters()]


def test_a_training_by_graphs_is_the_one_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        GradientAccumulator, "_graphs", lambda self: CudaGraphs(self.model, "fp32", replayed)
    )
    settings: dict[str, Any] = {"batch_size": 8, "micro_batch_tokens": 70, "packing": True}
    model, heard, _ = run(params(cuda_graphs=True, **settings))
    plain, listener, _ = run(params(**settings))
    assert [step.loss for step in heard.steps] == pytest.approx(
        [step.loss for step in listener.steps], abs=1e-5
    )
    assert distance(weights(model), weights(plain)) < 1e-4


def test_what_cannot_be_captured_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(work: Work) -> Work:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(
        GradientAccumulator, "_graphs", lambda self: CudaGraphs(self.model, "fp32", refused)
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
