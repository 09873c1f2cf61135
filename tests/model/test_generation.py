"""Generation: what a cache, a batch or a stream holds changes no token; draws are what they say."""

import math

import pytest
import torch

from simple_llama.errors import InputError
from simple_llama.model.attention import KVCache
from simple_llama.model.decoder import Decoder
from simple_llama.model.generation import generate, stream
from tests.support.models import STOP, random_model

PROMPT = [5, 9, 11, 40, 7, 7, 23]


def greedy(model: Decoder, prompt: list[int]) -> list[int]:
    [reply] = generate(model, [prompt], max_new_tokens=12, stop_ids=[STOP])
    return reply


def test_a_cache_that_grows_and_is_rewound_gives_the_same_reply() -> None:
    model = random_model()
    cache = KVCache(torch.tensor([0]), capacity=2)
    whole = greedy(model, PROMPT)
    for kept in (0, 3, len(PROMPT) - 1):  # what the cache holds of the prompt already
        cache.crop(kept)
        rest = [PROMPT[kept:]]
        steps = stream(model, rest, max_new_tokens=12, stop_ids=[STOP], cache=cache)
        assert [token for [(_, token)] in steps] == whole
    assert cache.capacity < 64


def test_a_continued_reply_ends_where_positions_end() -> None:
    model = random_model(max_position_embeddings=10)
    cache = KVCache(torch.tensor([0]), capacity=4)
    first = list(stream(model, [PROMPT], max_new_tokens=2, stop_ids=[96], cache=cache))
    assert cache.length == len(PROMPT) + 1, "the last token is not read yet"
    [[(_, last)]] = first[1:]
    rest = list(stream(model, [[last]], max_new_tokens=99, stop_ids=[96], cache=cache))
    assert len(PROMPT) + len(first) + len(rest) == 10


def test_a_stream_that_is_left_gives_the_model_back_its_mode() -> None:
    model = random_model().train()
    steps = stream(model, [PROMPT], max_new_tokens=5, stop_ids=[])
    next(steps)
    assert not model.training and not torch.is_inference_mode_enabled()
    steps.close()
    assert model.training


def test_any_of_several_stop_tokens_ends_a_reply() -> None:
    model = random_model()
    said = greedy(model, PROMPT)
    for token in set(said):
        replies = generate(model, [PROMPT], max_new_tokens=12, stop_ids=[STOP, token])
        assert replies == [said[: said.index(token)]]


def flat_model(scores: list[float]) -> Decoder:
    """Whatever it reads, it gives token i the score scores[i], and all others none."""
    model = random_model(tie_word_embeddings=False)
    with torch.no_grad():
        model.norm.weight.zero_()
        model.lm_head.weight.zero_()
    full = torch.full((97,), -math.inf)
    full[: len(scores)] = torch.tensor(scores)
    model.lm_head.register_forward_hook(lambda _module, _inputs, out: out + full)
    return model


def drawn(model: Decoder, temperature: float = 1.0, top_p: float = 1.0) -> list[int]:
    replies = generate(
        model,
        [PROMPT] * 200,
        max_new_tokens=20,
        stop_ids=[],
        temperature=temperature,
        top_p=top_p,
        generator=torch.Generator().manual_seed(0),
    )
    return [token for reply in replies for token in reply]


def test_temperature_and_top_p_draw_as_they_say() -> None:
    # probabilities .5 .3 .15 .05
    model = flat_model([math.log(p) for p in (0.5, 0.3, 0.15, 0.05)])

    def shares(**settings: float) -> list[float]:
        tokens = drawn(model, **settings)
        return [tokens.count(token) / len(tokens) for token in range(4)]

    assert shares(temperature=1.0) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    # squared and made a whole again
    assert shares(temperature=0.5) == pytest.approx([0.685, 0.247, 0.062, 0.007], abs=0.03)
    # the smallest set that reaches 0.7
    assert shares(temperature=1.0, top_p=0.7) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert shares(temperature=1.0, top_p=1e-6) == [1, 0, 0, 0]
    assert shares(temperature=1e-45) == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": -1.0}, "temperature: got -1"),
        ({"temperature": math.nan}, "temperature: got nan"),
        ({"top_p": 0.0}, "top_p: got 0, wanted more than 0"),
        ({"top_p": 1.5}, "top_p: got 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        drawn(random_model(), **settings)


def test_weights_that_are_no_numbers_are_said_to_be() -> None:
    model = random_model()
    with torch.no_grad():
        model.norm.weight.fill_(math.nan)
    with pytest.raises(InputError, match="not finite numbers"):
        drawn(model, temperature=1.0)
