"""Reads rows from files of JSON, JSONL or tables, in constant memory.

A file that is not a table is a JSON array if its first byte is `[`, otherwise JSONL. A fault of the
whole file raises InputError. A fault of one row does not stop reading: that row's value is a
RowError.
"""

import codecs
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from simple_llama.data.sources import find_files, name_in, open_decompressed
from simple_llama.data.tables import (
    as_json,
    columnar_rows,
    csv_rows,
    find_delimiter,
    is_columnar,
)
from simple_llama.errors import InputError
from simple_llama.files import describe_placeholder, read_head

CHUNK_BYTES = 2**20
MAX_ROW_LENGTH = 25 * 2**20
"""Longest element of an array in characters, longest line of JSONL in bytes. The longest record of
prepare fits even if every character is escaped. Parsed, a row can take 30 times this in memory."""
SHOWN_OF_LONG_ROW = 1000
PARTIAL_TOKEN = 16
"""Characters. A parse error this close to the end of what was read may only mean that a number,
word or escape is incomplete, so more is read before it counts as an error."""
SPACE = re.compile(r"[ \t\r\n]*")


class RowError(ValueError):
    """One row cannot be used. `reason` is a short fixed name to count by; str() gives details."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Row:
    """One element of an array or one line of JSONL."""

    id: str
    """File name and position, counted from 0: demo_sft.json[17]."""
    file: str
    """The file's name; for a file in a folder, its path relative to that folder."""
    value: Any
    """The parsed row, or a RowError if it cannot be parsed."""
    text: str
    """The row as it is written in the file."""


@dataclass(frozen=True, slots=True)
class Block:
    """Complete lines of a JSONL file, which can be parsed independently of the rest."""

    path: Path
    first: int
    """Number of the first line in the file, counted from 0."""
    offset: int
    """Byte offset of the first line in the file."""
    lines: bytes


@dataclass(frozen=True, slots=True)
class RepeatedKey:
    """Replaces a JSON object that has a key twice: it is unknown which of the two is meant."""

    key: str


def read_rows(path: str | Path) -> Iterator[Row]:
    """Yield every row of a file or folder. Raises InputError for a fault of a whole file."""
    file = Path(path)
    try:
        for file in find_files(path):
            name = name_in(file, path)
            first = read_head(file)
            if first and (other := describe_placeholder(first)):
                raise InputError(f"{file}: {other}")
            if is_columnar(first):
                yield from _table_rows(name, columnar_rows(file, first))
                continue
            if (between := find_delimiter(file)) is not None:
                with open_decompressed(file) as data:
                    yield from _table_rows(name, csv_rows(file, data, between))
                continue
            with open_decompressed(file) as data:
                is_array = _first_byte(file, data) == b"["
            with open_decompressed(file) as data:
                yield from (_array_rows if is_array else _line_rows)(file, name, data)
    except OSError as error:  # an error while reading does not name the file
        raise InputError(f"{error.filename or file}: {error.strerror}") from None


def _table_rows(name: str, rows: Iterator[dict[str, Any] | str]) -> Iterator[Row]:
    for index, value in enumerate(rows):
        wrong = RowError("wrong shape", value) if isinstance(value, str) else None
        yield Row(f"{name}[{index}]", name, wrong or value, as_json(value))


def read_blocks(path: str | Path, size: int) -> Iterator[Block]:
    """Split a JSONL file into blocks of about `size` bytes. Raises InputError."""
    path = Path(path)
    first = offset = 0
    try:
        with open_decompressed(path) as file:
            if _first_byte(path, file) == b"[":
                raise InputError(f"{path}: a JSON array, wanted JSONL")
        with open_decompressed(path) as file:
            while lines := file.read(size):
                lines += file.readline(MAX_ROW_LENGTH + 1)
                yield Block(path, first, offset, lines)
                first += lines.count(b"\n")
                offset += len(lines)
    except OSError as error:
        raise InputError(f"{error.filename or path}: {error.strerror}") from None


def block_rows(block: Block) -> Iterator[Row]:
    """The rows of a block, as read_rows yields them. Raises InputError."""
    file = io.BytesIO(block.lines)
    return _parsed_lines(block.path, block.path.name, file, block.first, block.offset)


def _object(pairs: list[tuple[str, Any]]) -> Any:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    times = Counter(key for key, _ in pairs)
    return RepeatedKey(times.most_common(1)[0][0])


def _integer(digits: str) -> int | float:
    # Python refuses to convert more than 4300 digits, and no number that is read is so large
    return int(digits) if len(digits) <= 300 else math.inf


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)


TOO_LONG = RowError(
    "too long", f"no end within {MAX_ROW_LENGTH} bytes; the content is its beginning"
)


def _first_byte(path: Path, file: BinaryIO) -> bytes:
    """The first byte that is not white space: b"[" for an array. Raises InputError."""
    head = file.read(8)
    if head.startswith(codecs.BOM_UTF8):
        remove = "sed '1s/^\\xEF\\xBB\\xBF//'"
        raise InputError(f"{path}: starts with a byte order mark; {remove} removes it")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in head:
        raise InputError(f"{path}: UTF-16 or binary, wanted UTF-8 text (iconv -f UTF-16 -t UTF-8)")
    while head:
        if stripped := head.lstrip(b" \t\r\n"):
            return stripped[:1]
        head = file.read(CHUNK_BYTES)
    raise InputError(f"{path}: an empty file, wanted conversations as JSON or JSONL")


def _line_rows(path: Path, name: str, file: BinaryIO) -> Iterator[Row]:
    """The rows of a JSONL file. Raises InputError if no line is an object."""
    objects = 0
    problem = ""
    for row in _parsed_lines(path, name, file, 0, 0):
        objects += isinstance(row.value, dict | RepeatedKey)
        if not problem and isinstance(row.value, RowError):
            problem = f" ({row.id}: {row.value})"
        yield row
    if not objects:
        raise InputError(
            f"{path}: neither a JSON array nor JSONL: no line holds a JSON object{problem}"
        )


def _parsed_lines(path: Path, name: str, file: BinaryIO, first: int, begin: int) -> Iterator[Row]:
    """The row of each line; its value is a RowError where the line is not JSON.

    first, begin: number and byte offset of the first line, if `file` is a part of a file.
    """
    for index, (offset, line, whole) in enumerate(_lines(file), first):
        try:
            text = line.decode("utf-8", "strict" if whole else "replace").strip(" \t\r\n")
        except UnicodeDecodeError as error:
            raise InputError(_not_utf8(path, begin + offset + error.start)) from None
        if text or not whole:
            yield Row(f"{name}[{index}]", name, _parse_line(text) if whole else TOO_LONG, text)


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes, bool]]:
    """(byte offset, line, True) of each line; of a line longer than MAX_ROW_LENGTH only the
    beginning, and False."""
    offset = 0
    while line := file.readline(MAX_ROW_LENGTH + 1):
        length = len(line)
        if whole := length <= MAX_ROW_LENGTH or line.endswith(b"\n"):
            yield offset, line, whole
        else:
            yield offset, line[:SHOWN_OF_LONG_ROW], whole
            while line and not line.endswith(b"\n"):
                line = file.readline(CHUNK_BYTES)
                length += len(line)
        offset += length


def _parse_line(text: str) -> Any:
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        return RowError("not JSON", f"not JSON: {error.msg} (character {error.pos})")
    except RecursionError:
        return RowError("not JSON", "nested too deeply")


def _not_utf8(path: Path, offset: int) -> str:
    return f"{path}: not UTF-8 text (byte {offset})"


def _array_rows(path: Path, name: str, file: BinaryIO) -> Iterator[Row]:
    """The elements of a JSON array. Raises InputError with the line at which it is not valid."""
    window = _Window(path, name, file)
    window.take()
    if window.peek() == "]":
        raise InputError(f"{path}: an empty array, wanted conversations")
    mark = ","
    while mark == ",":
        row = window.element()
        yield row
        mark = window.take()
    if mark == "":
        raise InputError(f"{path}: ends within the array, after {row.id}: a truncated file?")
    if mark != "]":
        raise window.error(f"{mark!r} after {row.id}, wanted ',' or ']'", window.at - 1)
    if window.peek():
        raise window.error("text after the array's closing ]", window.at)


class _Window:
    """The part of a file's text that is being parsed. What was parsed before is dropped."""

    def __init__(self, path: Path, name: str, file: BinaryIO) -> None:
        self.path, self.name, self.file = path, name, file
        self.text = ""
        self.at = 0
        self.index = 0
        self.lines_behind = 0
        self.ended = False
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._bytes_read = 0

    def peek(self) -> str:
        """The next character that is not white space; "" at the end of the file."""
        while True:
            match = SPACE.match(self.text, self.at)
            assert match
            self.at = match.end()
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._read(CHUNK_BYTES)

    def take(self) -> str:
        """Return the same character as peek, and move past it."""
        mark = self.peek()
        self.at += len(mark)
        return mark

    def element(self) -> Row:
        """Parse the next element. Raises InputError."""
        self.peek()
        row_id = f"{self.name}[{self.index}]"
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self.ended or not self._may_be_cut_off(error):
                    hint = ": a truncated file?" if self._is_cut_off(error) else ""
                    message = f"{row_id}: {error.msg}{hint}"
                    raise self.error(message, error.pos) from None
            except RecursionError:
                raise self.error(f"{row_id}: nested too deeply", self.at) from None
            else:
                # 12 may be the beginning of 12.5
                complete = isinstance(value, dict | list | str | RepeatedKey)
                if complete or self.ended or end + PARTIAL_TOKEN <= len(self.text):
                    row = Row(row_id, self.name, value, self.text[self.at : end])
                    self.at = end
                    self.index += 1
                    return row
            pending = len(self.text) - self.at
            if pending > MAX_ROW_LENGTH:
                raise self.error(f"{row_id}: no end within {MAX_ROW_LENGTH} characters", self.at)
            # doubling keeps the cost of parsing an element again linear in its length
            self._read(max(CHUNK_BYTES, min(pending, MAX_ROW_LENGTH - pending)))

    def error(self, message: str, at: int) -> InputError:
        line = self.lines_behind + self.text.count("\n", 0, at) + 1
        return InputError(f"{self.path}: line {line}: {message}")

    def _may_be_cut_off(self, error: json.JSONDecodeError) -> bool:
        return self._is_cut_off(error) or error.pos + PARTIAL_TOKEN >= len(self.text)

    def _is_cut_off(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos >= len(self.text)

    def _read(self, size: int) -> None:
        data = self.file.read(size)
        pending = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            offset = self._bytes_read - pending + error.start
            raise InputError(_not_utf8(self.path, offset)) from None
        self._bytes_read += len(data)
        self.ended = not data
        self.lines_behind += self.text.count("\n", 0, self.at)
        self.text = self.text[self.at :] + text
        self.at = 0
