"""What stands where a file should be is told from the file."""

from pathlib import Path

import pytest

from simple_llama.errors import InputError
from simple_llama.files import HEAD_BYTES, describe_placeholder, read_head, read_json

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


@pytest.mark.parametrize(("content", "said"), STAND_INS.items())
def test_what_was_saved_in_a_files_place_is_named(
    content: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes(content * 100)
    assert said in str(describe_placeholder(read_head(tmp_path / "config.json")))
    with pytest.raises(InputError, match=f"config.json: not JSON: {said}"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("content", [b"{}", b"version 1", b"<h1>a text</h1>", b"\x00" * 9, b"[1"])
def test_any_other_file_is_what_it_is(content: bytes) -> None:
    assert describe_placeholder(content[:HEAD_BYTES]) is None
