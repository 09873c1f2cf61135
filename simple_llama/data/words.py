"""Encodes text word by word and caches the ids of each word, which is faster than the tokenizer.

A byte-level tokenizer splits a text into words by a regular expression and encodes each word
separately. So the ids of a text are those of its words, and most words of a corpus occur often. If
the expression is one of those below and the text has only characters that Python's `re` classifies
in the same way, `re` gives the same words. All other text is left to the tokenizer.
"""

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simple_llama.data.tokenizer_source import pipeline_steps

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LETTERS, DIGITS = "a-zA-ZÀ-ÖØ-öø-ÿ", "0-9"
has_known_characters = re.compile(f"[\0-\x7f{LETTERS}£€°–—‘’“”…]*").fullmatch
"""Whether a text has only ASCII and common Western characters. NFC does not change any of them."""
WORD, PUNCTUATION = f" ?[{LETTERS}]+|'(?:s|t|re|ve|m|ll|d)", rf" ?[^\s{LETTERS}{DIGITS}]+"
BYTE_LEVEL = rf"{WORD}| ?[{DIGITS}]+|{PUNCTUATION}|\s+(?!\S)|\s+"
"""GPT-2's pattern, which is built into the pre-tokenizer ByteLevel."""
SINGLE_DIGITS = rf"{WORD}|[{DIGITS}]|{PUNCTUATION}|\s+(?![^\s{DIGITS}])|\s+"
"""The same where each digit is first split off, as SmolLM2 does, so that white space before a digit
is at the end of a text."""
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLIT_PATTERNS = {
    LLAMA3_PATTERN.replace("DIGITS", digits): LLAMA3_PATTERN.replace("DIGITS", own_digits)
    .replace(r"?\p{L}+", f"?[{LETTERS}]+")
    .replace(r"\p{L}", LETTERS)
    .replace(r"\p{N}", DIGITS)
    for digits, own_digits in (
        (r"\p{N}{1,3}", f"[{DIGITS}]{{1,3}}"),
        (r"\p{N}", f"[{DIGITS}]"),
    )
}
"""Pattern in a tokenizer.json (Llama 3's and Qwen2's) → the same for known characters in `re`."""
MAX_CACHED_CHARACTERS = 2**22
"""Total length of the cached words. It bounds memory for text without repetition."""


class WordEncoder:
    """Gives the same ids as a tokenizer, for text of known characters."""

    def __init__(
        self, tokenizer: "Tokenizer", pattern: str, *, space_first: bool, added: tuple[str, ...]
    ) -> None:
        """tokenizer: encodes single words. space_first: put a space before a text that does not
        begin with one. added: added tokens, which the tokenizer finds before it splits text."""
        self._ids = _Ids(tokenizer)
        self._split = re.compile(pattern, re.ASCII).findall
        self._space_first, self._added = space_first, added

    def encode(self, text: str) -> NDArray[np.uint32] | None:
        """The ids (T,); None for text that the tokenizer itself must encode."""
        if not (text.isascii() or has_known_characters(text)) or any(
            word in text for word in self._added
        ):
            return None
        if self._space_first and text[:1] not in ("", " "):
            text = f" {text}"
        return np.frombuffer(b"".join(map(self._ids.__getitem__, self._split(text))), np.uint32)


class _Ids(dict[str, bytes]):
    """Word → its ids as bytes of uint32, so that a word costs one look-up and one copy."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._characters = 0

    def __missing__(self, word: str) -> bytes:
        if self._characters > MAX_CACHED_CHARACTERS:
            self.clear()
            self._characters = 0
        ids = self._tokenizer.encode(word, add_special_tokens=False).ids
        self[word] = found = np.array(ids, np.uint32).tobytes()
        self._characters += len(word)
        return found


def word_pattern(layout: dict[str, Any]) -> tuple[str, bool] | None:
    """The pattern by which a tokenizer.json splits text of known characters, and whether it puts a
    space before a text. None if the tokenizer works in another way."""
    if (layout.get("normalizer") or {"type": "NFC"}).get("type") != "NFC":
        return None
    match pipeline_steps(layout.get("pre_tokenizer"), "pretokenizers"):
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
        ] if known in SPLIT_PATTERNS and not first.get("invert"):
            return SPLIT_PATTERNS[known], False
    return None
