"""What texts have in common that read the same, or nearly."""

import re
import unicodedata
from functools import cache

DIGITS = re.compile(r"\d+")
WORD = re.compile(r"[^\W\d_]+")
# WORD's capitalised ones, where the text is ASCII
CAPITALISED_ASCII = re.compile(r"(?<![A-Za-z])[A-Z][A-Za-z]*")

MAX_PATTERN = 2**14
"""Characters of a prompt that its pattern is made of."""
MAX_RUN = 32
"""Combining marks in a row that are put in order; texts in use have a few."""


def normalised(text: str) -> str:
    """What two texts that read the same have in common."""
    return _compatible(text).casefold()


def pattern(prompt: str) -> str:
    """The beginning of a prompt without its numbers and capitalised words."""
    text = DIGITS.sub("0", _compatible(prompt[:MAX_PATTERN]))
    if text.isascii():
        return CAPITALISED_ASCII.sub("A", text)
    return WORD.sub(lambda word: "A" if word[0][0].isupper() else word[0], text)


def _compatible(text: str) -> str:
    """The text in Unicode's form NFKC, white space as single spaces."""
    # split before: NFKC makes up to four words of one character
    text = " ".join(text.split())
    if text.isascii():
        return text
    run, its_samples = _long_runs()
    if its_samples.search(text[:: MAX_RUN // 2]):
        # normalize takes quadratic time to put a run in order: U+034F cuts it, as in
        # https://www.unicode.org/reports/tr15/#Stream_Safe_Text_Format
        text = run.sub("\\g<0>\u034f", text)
    return unicodedata.normalize("NFKC", text)


@cache
def _long_runs() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What matches MAX_RUN combining marks, and what matches in every (MAX_RUN / 2)th character
    of a text that holds so many."""
    marks = "".join(
        character
        for character in map(chr, range(0x300, 0x20000))  # beyond there are none
        if all(map(unicodedata.combining, unicodedata.normalize("NFKD", character)))
    )
    return re.compile(f"[{marks}]{{{MAX_RUN}}}"), re.compile(f"[{marks}]{{2}}")
