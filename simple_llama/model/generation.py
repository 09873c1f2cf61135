"""Batched generation with a KV cache, greedy or sampled."""

from collections.abc import Sequence

import torch
from torch import Tensor

from simple_llama.model.attention import KVCache
from simple_llama.model.decoder import Decoder


@torch.inference_mode()
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_id: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """What the model says after each prompt: token ids, without the stop token.

    A reply ends at stop_id, at max_new_tokens, or where the model's positions end. Temperature 0
    takes the most likely token; above, `generator` draws, and no other random state is touched.
    All prompts are computed as one batch; finished rows leave it once they are half of it.
    """
    device = next(model.parameters()).device
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), stop_id)  # what fills the left is never looked at
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
    padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
    ends = model.config.max_length
    limits = [min(max_new_tokens, max(0, ends - len(prompt))) for prompt in prompts]
    steps = max(limits)
    cache = KVCache(padding, longest + steps)

    replies: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # the reply each row of the batch belongs to
    unfinished = [limit > 0 for limit in limits]
    tokens = ids.to(device)
    was_training = model.training
    model.eval()
    for _ in range(steps):
        hidden = model(tokens, cache)[:, -1]
        chosen = _choose(model.logits(hidden), temperature, generator)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            if unfinished[row] and token != stop_id:
                replies[row].append(token)
            unfinished[row] &= token != stop_id and len(replies[row]) < limits[row]
        alive = [place for place, row in enumerate(rows) if unfinished[row]]
        if not alive:
            break
        tokens = chosen[:, None]
        if len(alive) <= len(rows) // 2:
            keep = torch.tensor(alive, device=device)
            cache.keep(keep)
            tokens = tokens[keep]
            rows = [rows[place] for place in alive]
    model.train(was_training)
    return replies


def _choose(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """One token id per row of logits (B, V)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    # drawn on the CPU, where the generator lives, so that a seed means the same on every device
    probabilities = (logits / temperature).softmax(dim=-1).cpu()
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(logits.device)
