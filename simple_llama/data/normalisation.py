"""Normalises texts, so that texts that read the same, or nearly the same, become equal."""

import re
import unicodedata
from functools import cache

DIGITS = re.compile(r"\d+")
WORD = re.compile(r"[^\W\d_]+")
# finds the capitalised matches of WORD in ASCII text, faster
CAPITALISED_ASCII = re.compile(r"(?<![A-Za-z])[A-Z][A-Za-z]*")

MAX_PATTERN = 2**14
"""Only this many characters of a prompt enter its pattern."""
MAX_RUN = 32
"""Longest run of combining marks that is sorted as a whole; real texts have a few in a row."""


def normalised(text: str) -> str:
    """The text in NFKC, case-folded, with single spaces."""
    return _compatible(text).casefold()


def prompt_pattern(prompt: str) -> str:
    """The beginning of a prompt, with each number replaced by 0 and each capitalised word by A."""
    text = DIGITS.sub("0", _compatible(prompt[:MAX_PATTERN]))
    if text.isascii():
        return CAPITALISED_ASCII.sub("A", text)
    return WORD.sub(lambda word: "A" if word[0][0].isupper() else word[0], text)


def _compatible(text: str) -> str:
    """The text in Unicode's form NFKC, white space as single spaces."""
    # NFKC can turn one character into four words, so split before it
    text = " ".join(text.split())
    if text.isascii():
        return text
    run, its_samples = _long_runs()
    if its_samples.search(text[:: MAX_RUN // 2]):
        # normalize needs quadratic time to sort a run; inserting U+034F splits the run, as in
        # https://www.unicode.org/reports/tr15/#Stream_Safe_Text_Format
        text = run.sub("\\g<0>\u034f", text)
    return unicodedata.normalize("NFKC", text)


@cache
def _long_runs() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Two patterns: one for MAX_RUN combining marks in a row, and one for two in a row, which every
    (MAX_RUN / 2)th character of a text with such a run must contain."""
    marks = "".join(
        character
        for character in map(chr, range(0x300, 0x20000))  # beyond there are none
        if all(map(unicodedata.combining, unicodedata.normalize("NFKD", character)))
    )
    return re.compile(f"[{marks}]{{{MAX_RUN}}}"), re.compile(f"[{marks}]{{2}}")
