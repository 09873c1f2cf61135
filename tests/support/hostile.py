"""Bytes that nobody means well with, and the one line that refuses them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from simple_llama.errors import InputError

LFS = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


HTML = b"\n<!DOCTYPE html>\n<html><head><title>404</title></head></html>"


STAND_INS = {
    b"": "an empty file",
    LFS: "a Git LFS pointer, not the file it points to: git lfs pull brings it",
    HTML: "an HTML page, not the file that was to be downloaded",
    b"\xef\xbb\xbf<HTML lang=en>": "an HTML page, not the file that was to be downloaded",
}


FUZZ = settings(max_examples=60, deadline=None, derandomize=True)


def refusal(attempt: Callable[[], object]) -> str:
    """The one line in which it is refused."""
    with pytest.raises(InputError) as error:
        attempt()
    return checked_line(error.value)


def checked_line(error: InputError) -> str:
    line = str(error)
    assert line and "\n" not in line and len(line) < 1000
    return line


def spliced(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """The bytes with, at each place, some taken out and a fragment put in."""
    for place, taken, fragment in edits:
        at = place % (len(data) + 1)
        data = data[:at] + fragment + data[at + taken :]
    return data


def edits(fragments: list[bytes]) -> st.SearchStrategy[list[tuple[int, int, bytes]]]:
    piece = st.sampled_from([b"", *fragments]) | st.binary(max_size=3)
    return st.lists(
        st.tuples(st.integers(0, 10_000), st.integers(0, 40), piece), min_size=1, max_size=4
    )


class Payload:
    """What runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)
