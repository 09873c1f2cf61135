"""Text → ids word by word, each distinct word encoded once.

A byte-level tokenizer cuts a text into words by a regular expression and encodes each on its own,
so the ids of a text are those of its words, and most words of a corpus have been seen before. Where
the expression is one of those below and the text is of characters whose kind is beyond doubt,
Python's `re` cuts it as the tokenizer does; all other text is left to the tokenizer.
"""

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simple_llama.data.tokenizer_source import steps

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LETTERS, DIGITS = "a-zA-ZÀ-ÖØ-öø-ÿ", "0-9"
is_known = re.compile(f"[\0-\x7f{LETTERS}£€°–—‘’“”…]*").fullmatch
"""Of text: beside ASCII Western letters and signs, which no normalisation to NFC changes."""
WORD, SIGNS = f" ?[{LETTERS}]+|'(?:s|t|re|ve|m|ll|d)", rf" ?[^\s{LETTERS}{DIGITS}]+"
BYTE_LEVEL = rf"{WORD}| ?[{DIGITS}]+|{SIGNS}|\s+(?!\S)|\s+"
"""GPT-2's, which the pre-tokenizer ByteLevel has built in."""
SINGLE_DIGITS = rf"{WORD}|[{DIGITS}]|{SIGNS}|\s+(?![^\s{DIGITS}])|\s+"
"""The same after each digit was cut out, as SmolLM2 does: before one, a text ends."""
CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    CUT.replace("DIGITS", digits): CUT.replace("DIGITS", own_digits)
    .replace(r"?\p{L}+", f"?[{LETTERS}]+")
    .replace(r"\p{L}", LETTERS)
    .replace(r"\p{N}", DIGITS)
    for digits, own_digits in (
        (r"\p{N}{1,3}", f"[{DIGITS}]{{1,3}}"),
        (r"\p{N}", f"[{DIGITS}]"),
    )
}
"""Llama 3's and Qwen2's, and what they are for known text."""
MAX_CACHED = 2**22
"""Characters of the words that are remembered: a bound for text that never repeats."""


class Words:
    """The ids of text, as its tokenizer gives them."""

    def __init__(
        self, tokenizer: "Tokenizer", pattern: str, *, space_first: bool, added: tuple[str, ...]
    ) -> None:
        """tokenizer: encodes one word. space_first: before a text that begins with no space.
        added: words that the tokenizer cuts out before all others."""
        self._ids = _Ids(tokenizer)
        self._split = re.compile(pattern, re.ASCII).findall
        self._space_first, self._added = space_first, added

    def encode(self, text: str) -> NDArray[np.uint32] | None:
        """The ids (T,); None where the tokenizer has to be asked."""
        if not (text.isascii() or is_known(text)) or any(word in text for word in self._added):
            return None
        if self._space_first and text[:1] not in ("", " "):
            text = f" {text}"
        return np.frombuffer(b"".join(map(self._ids.__getitem__, self._split(text))), np.uint32)


class _Ids(dict[str, bytes]):
    """Each word's ids, as the bytes of uint32: what a word costs is then a look-up and a copy."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._characters = 0

    def __missing__(self, word: str) -> bytes:
        if self._characters > MAX_CACHED:
            self.clear()
            self._characters = 0
        ids = self._tokenizer.encode(word, add_special_tokens=False).ids
        self[word] = found = np.array(ids, np.uint32).tobytes()
        self._characters += len(word)
        return found


def cut(layout: dict[str, Any]) -> tuple[str, bool] | None:
    """How a tokenizer.json cuts known text: by which expression, and whether a space comes before a
    text. None where it is not known here."""
    if (layout.get("normalizer") or {"type": "NFC"}).get("type") != "NFC":
        return None
    match steps(layout.get("pre_tokenizer"), "pretokenizers"):
        case [{"type": "ByteLevel"} as last] if last.get("use_regex", True):
            return BYTE_LEVEL, bool(last.get("add_prefix_space"))
        case [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False} as last,
        ] if last.get("use_regex", True):
            return SINGLE_DIGITS, False
        case [
            {"type": "Split", "pattern": {"Regex": str(known)}, "behavior": "Isolated"} as first,
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ] if known in SPLITS and not first.get("invert"):
            return SPLITS[known], False
    return None
