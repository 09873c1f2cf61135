"""A model that answers conversations with text that grows token by token."""

import contextlib
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from simple_llama.data.prompt import ChatTokenizer
from simple_llama.errors import InputError
from simple_llama.model.attention import KVCache
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import pick_device, uses_bf16
from simple_llama.model.folder import check_fits, load_model
from simple_llama.model.generation import stream
from simple_llama.model.weights import check_range, weight_files

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
UNFINISHED = 3
"""A character of UTF-8 has at most four bytes: so many may still wait for their last one."""
FIRST_CAPACITY = 256
"""Positions; a cache that is full doubles."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How replies are made."""

    max_tokens: int
    temperature: float
    """0: the most likely token."""
    top_p: float
    seed: int | None
    """None: another draw each time."""

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


class TextStream:
    """Token ids → text as soon as no later token can change it.

    A character may be spread over several tokens; until its last one has come, it decodes to
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
        return self._give(text, len(text) - min(open_end, UNFINISHED))

    def finish(self) -> str:
        """What was held back."""
        text = self._decode(self._ids)
        return self._give(text, len(text))

    def _give(self, text: str, ready: int) -> str:
        new = text[self._given : ready]
        self._given = max(self._given, ready)
        return new


class Replier:
    """A model and its tokenizer; what it has read of a conversation it does not read again."""

    def __init__(self, model: Decoder, tokenizer: ChatTokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._cache = KVCache(
            torch.zeros(1, dtype=torch.int64, device=model_device(model)), FIRST_CAPACITY
        )
        self._read: list[int] = []

    @property
    def max_length(self) -> int:
        """Positions for prompt and reply together."""
        return self.model.config.max_length

    def reply(
        self, prompt: Sequence[int], settings: Settings, generator: torch.Generator
    ) -> Generator[str, None, None]:
        """The reply, piece by piece. It may be left at any point."""
        kept = self._rewind(prompt)
        text = TextStream(self.tokenizer.decode)
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
        """How many ids of the prompt the cache holds; at least the last one is still to be read."""
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
    """A model folder on a device; without a tokenizer, with its own, used with prompt_format.

    In bfloat16 where the device is fast at it: half the memory, and twice as fast where reading
    the weights is what takes the time. Raises InputError.
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
    """Raises InputError where an argument was no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name}: not UTF-8 text") from None
    return text
