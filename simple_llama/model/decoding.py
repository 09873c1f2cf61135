"""One more token of each row of a batch, again and again: on a GPU as a CUDA graph."""

import torch
from torch import Tensor

from simple_llama.model.attention import KVCache
from simple_llama.model.blocks import Cached
from simple_llama.model.capture import Work, shared_capture, warn_without
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import is_out_of_memory
from simple_llama.model.sharding import is_sharded

CAPTURED_FROM = 16
"""Tokens of a row. Capturing takes as long as a few of them."""


class Decoding:
    """Scores of what follows the tokens that it is given one after the other, with a cache of what
    came before."""

    def __init__(self, model: Decoder, cache: KVCache) -> None:
        self.model, self.cache = model, cache
        self.captured: _Captured | None = None
        self.captures = can_capture(model)

    def logits(self, tokens: Tensor, to_come: int) -> Tensor:
        """Float32 (B, V) of tokens (B, T), which the cache then holds. to_come: tokens after these
        that will be asked for at most."""
        if tokens.shape[1] == 1 and self.captured is None and to_come >= CAPTURED_FROM:
            self._capture(tokens, to_come)
        if self.captured is not None:
            return self.captured.logits(tokens)
        return self.model.logits(self.model(tokens, self.cache)[:, -1])

    def select_rows(self, rows: Tensor) -> None:
        """Drop all but these rows of the batch."""
        self.cache.select_rows(rows)
        self.captured = None

    def _capture(self, tokens: Tensor, to_come: int) -> None:
        if not self.captures:
            return
        try:
            self.captured = _Captured(self.model, self.cache, tokens, to_come)
        except Exception as error:  # whatever cannot be captured
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            warn_without("generation: capturing a CUDA graph failed", error)
            self.captures = False


def can_capture(model: Decoder) -> bool:
    """Whether its decoding is captured: on a GPU that holds all of it."""
    parameters = list(model.parameters())
    return parameters[0].device.type == "cuda" and not any(map(is_sharded, parameters))


class _Captured:
    """A step of this batch, in fixed memory."""

    def __init__(self, model: Decoder, cache: KVCache, tokens: Tensor, to_come: int) -> None:
        cache.reserve(cache.length + 1 + to_come)
        self.cache, self.tokens = cache, tokens.clone()
        fixed = _FixedCache(cache)
        self.place = fixed.place
        self.scores = torch.empty(0)

        def work() -> None:
            self.scores = model.logits(model(self.tokens, fixed)[:, -1])

        self.replay: Work = shared_capture()(work)

    def logits(self, tokens: Tensor) -> Tensor:
        self.tokens.copy_(tokens)
        self.place.fill_(self.cache.length)
        self.replay()
        self.cache.length += 1
        return self.scores


class _FixedCache(KVCache):
    """The memory of a cache, of which one position is computed, again until the place is another:
    that the keys behind it are not filled yet is hidden by the mask, not by their number."""

    def __init__(self, cache: KVCache) -> None:
        super().__init__(cache.padding, cache.capacity)
        self.keys, self.values = cache.keys, cache.values
        self.place = torch.full((1,), cache.length, device=cache.padding.device)

    def positions(self, new: int) -> Tensor:
        return (self.place - self.padding[:, None]).clamp_min(0)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.keys[layer].index_copy_(2, self.place, k)
        self.values[layer].index_copy_(2, self.place, v)
        return self.keys[layer], self.values[layer]

    def mask(self, new: int) -> Cached:
        return Cached(self.padding if self.padded else None, self.place)

    def advance(self, new: int) -> None:
        """The place moves when the next token is given."""
