"""Decoding as CUDA graphs, without a GPU: what is captured of one token serves all that follow."""

from typing import Any

import pytest
import torch

from simple_llama.model import decoding
from simple_llama.model.attention import KVCache
from simple_llama.model.capture import Work
from simple_llama.model.decoder import Decoder
from simple_llama.model.decoding import Decoding, can_capture
from simple_llama.model.generation import generate, stream
from tests.support.graphs import record
from tests.support.models import STOP, random_model
from tests.support.ranks import LATENT

PROMPTS = [[5, 9, 11, 40, 7, 7, 23], [8, 4], [30, 31, 32, 33]]
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "mla": LATENT,
    "window": {"sliding_window": 6},
    "soft cap": {"attn_logit_softcapping": 2.0},
}


class Captures:
    """Counts what is captured."""

    def __init__(self) -> None:
        self.count = 0
        self.fails = False

    def __call__(self, work: Work) -> Work:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.count += 1
        return record(work)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Captures:
    """Where they are used from the second token on."""
    made = Captures()
    monkeypatch.setattr(decoding, "can_capture", lambda model: True)
    monkeypatch.setattr(decoding, "CAPTURED_FROM", 1)
    monkeypatch.setattr(decoding, "shared_capture", lambda: made)
    return made


def say(model: Decoder, prompts: list[list[int]], stop_ids: list[int]) -> list[list[int]]:
    return generate(model, prompts, max_new_tokens=25, stop_ids=stop_ids)


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["padded", "one"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_captured_steps_say_what_others_say(
    variant: dict[str, Any], prompts: list[list[int]], request: pytest.FixtureRequest
) -> None:
    """Also where rows end one after the other, and leave the batch."""
    model = random_model(**variant)
    plain = say(model, prompts, [])
    stop_ids = [plain[0][9]]
    ended = say(model, prompts, stop_ids)
    captures: Captures = request.getfixturevalue("captures")
    assert say(model, prompts, []) == plain
    assert captures.count == 1
    assert say(model, prompts, stop_ids) == ended
    assert captures.count >= 2 and len(ended[0]) < 25


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_their_scores_are_the_same(variant: dict[str, Any], captures: Captures) -> None:
    model = random_model(**variant).eval()
    tokens = torch.randint(4, 97, (2, 20), generator=torch.Generator().manual_seed(0))
    padding = torch.tensor([0, 3])
    with torch.inference_mode():
        captured, plain = (Decoding(model, KVCache(padding, 5)) for _ in range(2))
        plain.captures = False
        captured.logits(tokens[:, :5], 15)
        plain.logits(tokens[:, :5], 15)
        for place in range(5, 20):
            to_come = 19 - place
            mine = captured.logits(tokens[:, place : place + 1], to_come)
            theirs = plain.logits(tokens[:, place : place + 1], to_come)
            assert (mine - theirs).abs().max() < 1e-5
    assert captures.count == 1


def test_a_conversation_goes_on_behind_captured_steps(captures: Captures) -> None:
    model = random_model()
    caches = [KVCache(torch.tensor([0]), capacity=2) for _ in range(2)]
    found = []
    for cache, first in zip(caches, (1, 99), strict=True):
        decoding.CAPTURED_FROM = first  # the fixture gives it back its value
        parts = ([*PROMPTS[0]], [44, 45], [50])
        found.append(
            [
                [*stream(model, [part], max_new_tokens=9, stop_ids=[STOP], cache=cache)]
                for part in parts
            ]
        )
    assert found[0] == found[1]
    assert captures.count == 3
    assert caches[0].length == caches[1].length


def test_what_cannot_be_captured_is_one_warning(captures: Captures) -> None:
    model = random_model()
    captures.fails = True
    with pytest.warns(UserWarning, match=r"capturing a CUDA graph failed, .* not permitted") as it:
        replies = say(model, PROMPTS, [])
    assert len(it) == 1
    captures.fails = False
    assert say(model, PROMPTS, []) == replies


def test_nothing_is_captured_on_a_cpu() -> None:
    assert not can_capture(random_model())
