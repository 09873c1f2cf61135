"""Text cut into words here: the same ids as from the tokenizer itself, whatever the text."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from simple_llama.data import words
from simple_llama.data.tokenizer import TextEncoder, make_text_encoder
from simple_llama.data.tokenizer_source import TokenizerSource
from tests.support.tokenizer_kinds import CHATML, LLAMA3, WORDS, byte_level, sentence_piece

TEXT = st.text(
    st.sampled_from("  \t\n\r\f\v\x1c\x00'strevmdlLSTſ_aZ059.,;:{}<|>")
    | st.characters(max_codepoint=127)
    | st.sampled_from("éÀÿß–’“…£€°")
    | st.sampled_from("×÷²٣ªµ\u0301\u2028\xa0\x85猫🙂ſK"),
    max_size=40,
)


def encoder(path: Path) -> TextEncoder:
    return make_text_encoder(TokenizerSource.read(path), ["<EOA>"], stop="<EOA>", bos=None)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> dict[str, TextEncoder]:
    """GPT-2's with a space before a text and without, SmolLM2's, Qwen2's, Llama 3's, and one with
    a word of its own among the added tokens."""
    folder = tmp_path_factory.mktemp("kinds")
    layouts = {"plain": json.loads(tiny_tokenizer.read_text())}
    for name, special, split in (("digits", CHATML, False), ("qwen", LLAMA3, True)):
        path = byte_level(folder / f"{name}.json", special, words=split)
        layouts[name] = json.loads(path.read_text())
    text = json.dumps(layouts["plain"])
    layouts["space"] = json.loads(text)
    layouts["space"]["pre_tokenizer"]["add_prefix_space"] = True
    layouts["llama3"] = json.loads(
        json.dumps(layouts["qwen"]).replace(
            json.dumps(WORDS)[1:-1],
            json.dumps(WORDS.replace(r"\p{N}|", r"\p{N}{1,3}|", 1))[1:-1],
        )
    )
    tokenizer = Tokenizer.from_str(text)
    tokenizer.add_tokens(["<|x|>", "dl"])
    layouts["added"] = json.loads(tokenizer.to_str())
    found = {}
    for name, layout in layouts.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(layout))
        found[name] = encoder(path)
    return found


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(TEXT, max_size=4))
def test_the_same_ids_as_the_tokenizer(kinds: dict[str, TextEncoder], texts: list[str]) -> None:
    for name, kind in kinds.items():
        assert kind.words, name
        for text, ids in zip(texts, kind.encode(texts, at_start=False), strict=True):
            asked = kind.tokenizer.encode(text, add_special_tokens=False).ids
            assert ids.tolist() == asked, (name, text)


def test_known_text_without_added_words_needs_no_tokenizer(
    kinds: dict[str, TextEncoder],
) -> None:
    for name, kind in kinds.items():
        assert kind.words
        assert (kind.words.encode("what the middle was") is None) == (name == "added")
        assert kind.words.encode("plain text, 12 of it: “café”") is not None
        assert kind.words.encode("²") is None


def test_a_tokenizer_that_cuts_otherwise_is_asked(tmp_path: Path) -> None:
    path = sentence_piece(tmp_path / "sentence_piece.json", legacy=False)
    assert encoder(path).words is None


def test_words_that_never_repeat_are_forgotten(
    kinds: dict[str, TextEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "MAX_CACHED_CHARACTERS", 20)
    kind = kinds["plain"]
    assert kind.words
    for number in range(50):
        text = f"number {number} of many"
        [ids] = kind.encode([text], at_start=False)
        assert ids.tolist() == kind.tokenizer.encode(text, add_special_tokens=False).ids
    assert sum(map(len, kind.words._ids)) < 40
