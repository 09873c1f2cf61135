"""Printing text of unknown origin: harmless, wrapped, in columns."""

import unicodedata
from collections.abc import Sequence
from typing import TextIO

from wcwidth import wcswidth

BIDI = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029"
"""Marks that turn the direction of text around, and separators that break lines."""
BETWEEN = " │ "


def printable(text: str) -> str:
    """Replace control characters by pictures of them, all but line breaks and tabs.

    In a terminal, an escape sequence could rename the window, or type commands.
    """
    if text.isprintable():
        return text
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character in "\n\t" or character.isprintable():
        return character
    if ord(character) < 0x20:
        return chr(0x2400 + ord(character))  # ␛ for an escape
    if unicodedata.category(character) in ("Cc", "Cs", "Co", "Cn") or character in BIDI:
        return "\N{REPLACEMENT CHARACTER}"
    return character


def wrap(text: str, columns: int) -> list[str]:
    """Break a text into lines of at most so many columns, between words, or within a longer one.

    When the text goes on, all lines but the last stay as they are: they may be printed already.
    """
    lines = []
    for paragraph in text.expandtabs(4).split("\n"):
        line = ""
        for word in _words(paragraph):
            if wcswidth(line + word.rstrip(" ")) > columns and line:
                lines.append(line.rstrip(" "))
                line = ""
            for character in word:
                if wcswidth(line + character) > columns:
                    if character != " ":
                        lines.append(line)
                        line = character
                else:
                    line += character
        lines.append(line.rstrip(" "))
    return lines


def _words(text: str) -> list[str]:
    """Split a text before each word; the spaces behind a word stay with it."""
    words: list[str] = []
    for character in text:
        if words and not (words[-1].endswith(" ") and character != " "):
            words[-1] += character
        else:
            words.append(character)
    return words


class Columns:
    """Prints texts side by side while they grow.

    A row that a text may still change is written over; once none can, the next row begins.
    """

    def __init__(self, out: TextIO, titles: Sequence[str], columns: int) -> None:
        self._out = out
        count = len(titles)
        self._width = (columns - 1 - len(BETWEEN) * (count - 1)) // count
        self._texts = [""] * count
        self._growing = [True] * count
        self._printed = 0
        self._write([title[-self._width :] for title in titles], "\n")
        self._write(["─" * self._width] * count, "\n")

    def add(self, column: int, text: str) -> None:
        if text:
            self._texts[column] += printable(text)
            self._show()

    def end(self, column: int) -> None:
        self._growing[column] = False
        self._show()

    def _show(self) -> None:
        texts = [wrap(text, self._width) for text in self._texts]
        rows = max(map(len, texts))
        final = [len(lines) - 1 for lines, on in zip(texts, self._growing, strict=True) if on]
        done = min(final, default=rows)
        cells = [lines + [""] * (rows - len(lines)) for lines in texts]
        while self._printed < done:
            self._write([lines[self._printed] for lines in cells], "\n")
            self._printed += 1
        if self._printed < rows:
            self._write([lines[self._printed] for lines in cells], "")
        self._out.flush()

    def _write(self, cells: Sequence[str], end: str) -> None:
        padded = [cell + " " * (self._width - wcswidth(cell)) for cell in cells]
        self._out.write("\r" + BETWEEN.join(padded) + end)
