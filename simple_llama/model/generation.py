"""Batched generation with a KV cache, greedy or sampled, token by token or whole."""

from collections.abc import Collection, Generator, Sequence

import torch
from torch import Tensor

from simple_llama.errors import InputError
from simple_llama.model.attention import KVCache
from simple_llama.model.decoder import Decoder
from simple_llama.model.decoding import Decoding


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """What the model says after each prompt: token ids, without the stop token. See `stream`."""
    replies: list[list[int]] = [[] for _ in prompts]
    for step in stream(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids,
        temperature=temperature,
        top_p=top_p,
        generator=generator,
    ):
        for row, token in step:
            replies[row].append(token)
    return replies


@torch.inference_mode()
def stream(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    cache: KVCache | None = None,
) -> Generator[list[tuple[int, int]]]:
    """Yields the new tokens of each step as (index of the prompt, token id), without stop tokens.

    A reply ends at one of stop_ids, at max_new_tokens, or where the model's positions end.
    Temperature 0 takes the most likely token; above, `generator` draws among the most likely ones
    that have top_p of the probability together (https://arxiv.org/abs/1904.09751), and no other
    random state is touched. All prompts are computed as one batch; finished rows leave it once they
    are half of it. With a cache, which then holds what comes before it, the one prompt continues.

    Raises InputError where temperature or top_p is out of range or the model's scores are no
    numbers.
    """
    if not temperature >= 0:
        raise InputError(f"temperature: got {temperature:g}, wanted 0 or more")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p: got {top_p:g}, wanted more than 0 and at most 1")
    tokens, padding = _pad_left(prompts, next(model.parameters()).device)
    before = 0 if cache is None else cache.length
    ends = model.config.max_length - before
    limits = [min(max_new_tokens, max(0, ends - len(prompt))) for prompt in prompts]
    steps = max(limits)
    decoding = Decoding(model, cache or KVCache(padding, tokens.shape[1] + steps))

    given = [0] * len(prompts)
    rows = list(range(len(prompts)))  # the prompt each row of the batch belongs to
    unfinished = [limit > 0 for limit in limits]
    was_training = model.training
    model.eval()
    try:
        for to_come in reversed(range(steps)):
            chosen = _choose(decoding.logits(tokens, to_come), temperature, top_p, generator)
            new = []
            for row, token in zip(rows, chosen.tolist(), strict=True):
                if unfinished[row] and token not in stop_ids:
                    new.append((row, token))
                    given[row] += 1
                unfinished[row] &= token not in stop_ids and given[row] < limits[row]
            yield new
            alive = [place for place, row in enumerate(rows) if unfinished[row]]
            if not alive:
                break
            tokens = chosen[:, None]
            if len(alive) <= len(rows) // 2:
                keep = torch.tensor(alive, device=tokens.device)
                decoding.select_rows(keep)
                tokens = tokens[keep]
                rows = [rows[place] for place in alive]
    finally:
        model.train(was_training)


def _pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (B, T), whose rows end together, and how much padding (B,) each begins with."""
    longest = max(len(prompt) for prompt in prompts)
    padding = [longest - len(prompt) for prompt in prompts]
    # any id may stand for padding: the mask hides it
    rows = [[0] * left + list(prompt) for left, prompt in zip(padding, prompts, strict=True)]
    return torch.tensor(rows, device=device), torch.tensor(padding, device=device)


def _choose(
    logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None
) -> Tensor:
    """One token id per row of logits (B, V)."""
    best, chosen = logits.max(dim=-1, keepdim=True)
    if temperature == 0:
        return chosen[:, 0]
    # less the best, so that a small temperature does not overflow
    probabilities = ((logits - best) / temperature).softmax(dim=-1)
    if top_p < 1:
        probabilities = _nucleus(probabilities, top_p)
    # drawn on the CPU, where the generator lives, so that a seed means the same on every device
    drawn_from = probabilities.cpu()
    if not drawn_from.isfinite().all():
        raise InputError("the model's scores are not finite numbers: damaged or diverged weights")
    return torch.multinomial(drawn_from, 1, generator=generator)[:, 0].to(logits.device)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """(B, V) without the least likely tokens beyond top_p; the most likely one always stays."""
    ordered, order = probabilities.sort(dim=-1, descending=True)
    beyond = ordered.cumsum(dim=-1) - ordered >= top_p
    return torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(beyond, 0))
