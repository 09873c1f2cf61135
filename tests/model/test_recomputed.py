"""The plain formula by blocks that are computed again: its results, its gradients, its memory."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from simple_llama.model import recomputed
from simple_llama.model.attention import plain_attention
from simple_llama.model.blocks import sliding_window_mask
from simple_llama.model.recomputed import recomputed_attention

H, K, W = 2, 8, 6
OFFSETS = torch.tensor([0, 1, 38, 38, 70], dtype=torch.int32)
VARIANTS: list[dict[str, Any]] = [
    {"window": window, "softcap": softcap, "scale": scale}
    for window in (None, 1, 7, 40)
    for softcap, scale in ((None, None), (2.0, 0.5))
]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2 to 8 queries, whose keys are rounded up to a multiple of 8."""
    monkeypatch.setattr(recomputed, "MIN_QUERIES", 2)
    monkeypatch.setattr(recomputed, "MAX_QUERIES", 8)
    monkeypatch.setattr(recomputed, "MAX_SCORES", {"cpu": 400})


def random(tokens: int, rows: int = 1, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, heads, tokens, width) for heads, width in ((H, K), (1, K), (1, W))]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def by_mask(inputs: list[Tensor], window: int | None, **how: Any) -> Tensor:
    """All scores at once."""
    (q, k, v), T = inputs, inputs[0].shape[2]
    k, v = k.repeat_interleave(H, 1), v.repeat_interleave(H, 1)
    return plain_attention(q, k, v, sliding_window_mask(T, T, window), **how)


def with_gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out, *torch.autograd.grad(out, inputs, grad)]


def largest_difference(some: list[Tensor], others: list[Tensor]) -> float:
    return max(float((x - y).detach().abs().max()) for x, y in zip(some, others, strict=True))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("rows", [1, 3])
def test_results_and_gradients_are_those_of_all_scores_at_once(
    rows: int, variant: dict[str, Any], small_blocks: None
) -> None:
    inputs = random(70, rows)
    expected = with_gradients(by_mask(inputs, **variant), inputs)
    mine = with_gradients(recomputed_attention(*inputs, **variant), inputs)
    assert largest_difference(mine, expected) < 1e-5


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_examples_are_computed_as_if_alone(variant: dict[str, Any], small_blocks: None) -> None:
    """Also one token, and an example without any."""
    inputs = random(70)
    ends = OFFSETS.tolist()
    spans = [slice(*span) for span in itertools.pairwise(ends) if span[0] < span[1]]
    alone = [by_mask([x[:, :, span] for x in inputs], **variant) for span in spans]
    expected = with_gradients(torch.cat(alone, dim=2), inputs)
    mine = with_gradients(recomputed_attention(*inputs, **variant, offsets=OFFSETS), inputs)
    assert largest_difference(mine, expected) < 1e-5


def test_gradients_in_bfloat16_are_added_up_in_float32(small_blocks: None) -> None:
    variant: dict[str, Any] = {"window": None, "softcap": 2.0, "scale": None}
    half = random(512, dtype=torch.bfloat16)
    whole = [x.detach().float().requires_grad_() for x in half]
    expected = with_gradients(by_mask(whole, **variant), whole)
    mine = with_gradients(recomputed_attention(*half, **variant), half)
    for one, other in zip(mine, expected, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.float() - other).norm() < 0.015 * other.norm()


@pytest.mark.parametrize("offsets", [None, OFFSETS], ids=["whole", "packed"])
def test_what_the_compiler_is_told_of_it_is_true(
    offsets: Tensor | None, small_blocks: None
) -> None:
    q, k, v = random(70)
    k, v = (x.expand(-1, H, -1, -1).detach().clone().requires_grad_() for x in (k, v))
    torch.library.opcheck(recomputed._compiled, (q, k, v, offsets, 7, None, 2.0))


@pytest.mark.parametrize("window", [None, 300])
def test_memory_grows_with_the_tokens_only(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most at once, of forward and backward pass."""
    monkeypatch.setattr(recomputed, "MAX_SCORES", {"cpu": 2**16})
    monkeypatch.setattr(recomputed, "MIN_QUERIES", 4)

    def peak(tokens: int) -> int:
        q, k, v = (torch.randn(1, 1, tokens, K, requires_grad=True) for _ in range(3))
        with torch.autograd.profiler.profile(profile_memory=True) as profile:
            out = recomputed_attention(q, k, v, window=window, scale=None, softcap=5.0)
            out.sum().backward()  # type: ignore[no-untyped-call]
        assert profile.kineto_results is not None
        events = [one for one in profile.kineto_results.events() if one.name() == "[memory]"]
        events.sort(key=lambda event: event.start_ns())
        return int(max(itertools.accumulate(event.nbytes() for event in events)))

    few, many = peak(1024), peak(8192)
    assert many < 8.5 * few and many < 8192**2 / 10
