"""A model with its tokenizer that answers a conversation, token by token."""

import contextlib
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from simple_llama.data.prompt import ChatTokenizer
from simple_llama.errors import InputError
from simple_llama.model.attention import KVCache
from simple_llama.model.checkpoint import check_fits
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import pick_device, uses_bf16
from simple_llama.model.folder import load_model
from simple_llama.model.generation import stream
from simple_llama.model.weights import check_range, weight_files

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MAX_PENDING = 3
"""Bytes of an incomplete character: one of UTF-8 has at most four."""
FIRST_CAPACITY = 256
"""Positions of a new KV cache; a full one doubles."""


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How replies are generated."""

    max_tokens: int
    temperature: float
    """0: greedy."""
    top_p: float
    seed: int | None
    """None: other samples each time."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InputError(f"--max-tokens: got {self.max_tokens}, wanted 1 or more")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"--temperature: got {self.temperature:g}, wanted 0 or more")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p: got {self.top_p:g}, wanted more than 0 and at most 1")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise InputError(f"--seed: got {self.seed}, wanted an integer from 0 to 2^63 - 1")

    def generator(self) -> torch.Generator:
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


class IncrementalDecoder:
    """Decodes token by token, and gives text out as soon as no later token can change it.

    A character may be spread over several tokens. Until the last of them has come, it decodes to
    replacement characters, which are held back.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._given = 0

    def push(self, token: int) -> str:
        """The text that this token completes."""
        self._ids.append(token)
        text = self._decode(self._ids)
        open_end = len(text) - len(text.rstrip(REPLACEMENT))
        return self._give(text, len(text) - min(open_end, MAX_PENDING))

    def finish(self) -> str:
        """The text that was held back."""
        text = self._decode(self._ids)
        return self._give(text, len(text))

    def _give(self, text: str, ready: int) -> str:
        new = text[self._given : ready]
        self._given = max(self._given, ready)
        return new


class Replier:
    """A model with its tokenizer and a KV cache, so that no part of a prompt is computed twice."""

    def __init__(self, model: Decoder, tokenizer: ChatTokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._cache = KVCache(
            torch.zeros(1, dtype=torch.int64, device=model_device(model)), FIRST_CAPACITY
        )
        self._read: list[int] = []

    @property
    def max_length(self) -> int:
        """Tokens of prompt and reply together, at most."""
        return self.model.config.max_length

    def reply(
        self, prompt: Sequence[int], settings: GenerationSettings, generator: torch.Generator
    ) -> Generator[str, None, None]:
        """Yield the reply, piece by piece. The caller may stop at any point."""
        kept = self._rewind(prompt)
        text = IncrementalDecoder(self.tokenizer.decode)
        for step in stream(
            self.model,
            [prompt[kept:]],
            max_new_tokens=settings.max_tokens,
            stop_ids=self.tokenizer.stop_ids,
            temperature=settings.temperature,
            top_p=settings.top_p,
            generator=generator,
            cache=self._cache,
        ):
            for _, token in step:
                self._read.append(token)
                yield text.push(token)
        yield text.finish()

    def _rewind(self, prompt: Sequence[int]) -> int:
        """Cut the cache to the prefix that it shares with prompt[:-1]; return its length."""
        read = self._read[: self._cache.length]
        pairs = zip(read, prompt[:-1])
        kept = next(
            (at for at, (a, b) in enumerate(pairs) if a != b), min(len(read), len(prompt) - 1)
        )
        self._cache.crop(kept)
        self._read = list(prompt)
        return kept


def load_replier(
    folder: str,
    device: str,
    *,
    prompt_format: str = "auto",
    tokenizer: ChatTokenizer | None = None,
) -> Replier:
    """Load a model folder onto a device.

    tokenizer: None for the folder's own, with this prompt_format. The weights are held in bfloat16
    where the device computes fast in it: that takes half the memory, and half the time where
    reading the weights takes most of it. Raises InputError.
    """
    if not Path(folder).exists():
        raise InputError(f"{folder}: no such model; `dvc repro` makes models/sft")
    weight_files(folder)  # an adapter's folder, say, before its tokenizer is missed
    own = tokenizer is None
    tokenizer = (tokenizer or ChatTokenizer.from_folder(folder, prompt_format)).for_model(folder)
    size = tokenizer.vocab_size
    with contextlib.redirect_stdout(sys.stderr):  # its notes: replies alone go to stdout
        check_fits(folder, size, 1, added_tokens=tokenizer.added_tokens)
    where = pick_device(device)
    model = load_model(
        folder,
        where,
        vocab_size=size,
        trained_vocab_size=tokenizer.file_vocab_size if own else tokenizer.base_vocab_size,
    )
    if uses_bf16(where, "auto") and model.config.mla is None:
        for name, parameter in model.named_parameters():  # not the rotary frequencies
            check_range(parameter.data, torch.bfloat16, f"{folder}: {name}")
            parameter.data = parameter.data.bfloat16()
    return Replier(model.eval(), tokenizer)


def model_device(model: Decoder) -> torch.device:
    return next(model.parameters()).device


def checked_text(name: str, text: str) -> str:
    """Return the text. Raises InputError where the argument `name` was no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name}: not UTF-8 text") from None
    return text
