"""What stands where a file should be is told from the file."""

from pathlib import Path

import pytest

from simple_llama.errors import InputError
from simple_llama.files import HEAD_BYTES, describe_placeholder, read_head, read_json
from tests.support.hostile import STAND_INS


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
