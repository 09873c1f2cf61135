"""Token ids as text that a person can read, token by token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simple_llama.data.tokenizer import special_ids
from simple_llama.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_BYTES = 4
"""A character of UTF-8 has at most four bytes, and each may be a token of its own."""
MARKS = {"\n": "↵", "\t": "⇥"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One token, or the several that make one character together."""

    position: int
    """Position of the first token in the example, from 0, as rotary embeddings count it."""
    ids: tuple[int, ...]
    text: str
    """Safe to print (see `visible`)."""
    target: bool
    """Whether the loss counts it."""
    control: bool
    """Whether it is a special token, which no text can produce."""
    loss: float | None = None
    """In nats; None where no model was asked."""


class Speller:
    """Spells out the ids of a tokenizer, token by token."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._special = set(special_ids(tokenizer))

    @classmethod
    def from_file(cls, path: Path) -> "Speller":
        """Read a tokenizer.json. Raises InputError."""
        from tokenizers import Tokenizer

        if not path.is_file():
            raise InputError(f"{path}: no such file; run `dvc repro tokenize` first")
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # the Rust library raises nothing more precise
            raise InputError(f"{path}: not a tokenizer: {error}") from None

    def cells(
        self, ids: Sequence[int], mask: Sequence[Any], losses: Sequence[float] | None = None
    ) -> Iterator[Cell]:
        """Spell out an example. ids, mask and losses (in nats): (T,)."""
        before: list[int] = []
        pending: list[int] = []
        for position, token in enumerate(ids):
            target = bool(mask[position])
            control = token in self._special
            pending.append(token)
            text = self._name(token) if control else self._text(before, pending)
            last = position + 1 == len(ids)
            # a part of a character says nothing before its last byte is there
            whole = last or not text.endswith("\ufffd") or len(pending) == MAX_BYTES
            if control or whole or ids[position + 1] in self._special:
                first = position + 1 - len(pending)
                shown = visible(text).replace(" ", "·") or "∅"
                loss = sum(losses[first : position + 1]) if losses is not None else None
                yield Cell(first, tuple(pending), shown, target, control, loss)
                before, pending = ([] if control else pending), []

    def _text(self, before: list[int], ids: list[int]) -> str:
        """What these ids add to the text before them: alone, some would lose their first space."""
        start = self._decode(before) if before else ""
        whole = self._decode(before + ids)
        return whole[len(start) :] if whole.startswith(start) else self._decode(ids)

    def _name(self, token: int) -> str:
        return self._tokenizer.id_to_token(token) or ""

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text


def visible(text: str) -> str:
    """Make a text one line that is safe on a terminal: control characters, and marks that change
    the direction of writing, are spelt out."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else MARKS.get(character, f"<U+{ord(character):04X}>")
        for character in text
    )
