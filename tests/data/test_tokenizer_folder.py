"""A tokenizer's folder, whichever of its files hold its tokens, against `transformers`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.tokenizer_source import TokenizerSource
from simple_llama.errors import InputError
from tests.support.conversations import turns
from tests.support.templates import of_transformers
from tests.support.tokenizer_kinds import CHATML, byte_level

TEXT = "two  <|im_start|>user\n a <think> b </think> <tool> <|x|> <|pad|>  </s><|im_end|>\n end"
PLAIN = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def token(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, **PLAIN, "special": True, **flags}


def decoder(first: int, *tokens: dict[str, Any]) -> dict[str, Any]:
    return {"added_tokens_decoder": {str(first + i): one for i, one in enumerate(tokens)}}


Files = dict[str, dict[str, Any]]
CONFIG, NAMED, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
CHATML_TOKENS = [token(name) for name in CHATML]


def arrangements(size: int) -> dict[str, tuple[Sequence[str], Files]]:
    """What tokenizer.json has of its own, and what stands in the other files; size: ids of the
    vocabulary without them."""
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    old = {name: size + i for i, name in enumerate((*CHATML, "<tool>"))}
    return {
        "tokenizer.json alone": (CHATML, {CONFIG: ends}),
        "added_tokens_decoder": ((), {CONFIG: ends | decoder(size, *CHATML_TOKENS)}),
        "a part of each": (
            CHATML[:1],
            {CONFIG: ends | decoder(0, *CHATML_TOKENS[:1]) | decoder(size, *CHATML_TOKENS[1:])},
        ),
        "ids in another order": (
            (),
            {
                CONFIG: ends
                | {
                    "added_tokens_decoder": {
                        str(size + 2): token("<|im_end|>"),
                        str(size + 10): token("<|endoftext|>"),
                        str(size): token("<|im_start|>"),
                    }
                }
            },
        ),
        "white space around a token": (
            (),
            {
                CONFIG: ends
                | decoder(
                    size,
                    CHATML_TOKENS[0],
                    token("<|im_start|>", rstrip=True),
                    token("<|im_end|>", lstrip=True, rstrip=True),
                    token("<think>", special=False),
                )
            },
        ),
        "added_tokens.json": ((), {CONFIG: {}, NAMED: ends, ADDED: old}),
        "added_tokens.json, the names in the config": ((), {CONFIG: ends, ADDED: old}),
        "added_tokens.json without a config": ((), {NAMED: ends, ADDED: old}),
        "added_tokens.json beside a decoder": (
            (),
            {CONFIG: ends | decoder(size, *CHATML_TOKENS), ADDED: {"<|x|>": size + 9}},
        ),
        "special_tokens_map.json against the config": (
            CHATML,
            {CONFIG: {"eos_token": "<|endoftext|>"}, NAMED: {"eos_token": token("<|im_end|>")}},
        ),
        "special_tokens_map.json beside a decoder": (
            CHATML,
            {
                CONFIG: {"eos_token": "<|endoftext|>"} | decoder(0, *CHATML_TOKENS),
                NAMED: {"eos_token": "<|im_end|>"},
            },
        ),
        "a named token that no file adds": (
            CHATML,
            {
                CONFIG: {
                    "eos_token": {"__type": "AddedToken", **token("</s>")},
                    "pad_token": "<|pad|>",
                    "bos_token": "<|endoftext|>",
                    "tool_token": "<tool>",
                }
            },
        ),
        "additional special tokens": (
            CHATML,
            {CONFIG: ends | {"additional_special_tokens": ["<|im_start|>", "<|x|>", "<tool>"]}},
        ),
    }


NAMES = list(arrangements(0))


def written(folder: Path, name: str) -> Path:
    bare = byte_level(folder / "bare.json", ())
    size = len(json.loads(bare.read_text())["model"]["vocab"])
    own, files = arrangements(size)[name]
    byte_level(folder / "tokenizer.json", own)
    bare.unlink()
    for file, value in files.items():
        kind = {"tokenizer_class": "PreTrainedTokenizerFast"} if file == CONFIG else {}
        (folder / file).write_text(json.dumps(value | kind))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_its_tokens_have_the_ids_of_transformers(name: str, tmp_path: Path) -> None:
    source = TokenizerSource.read(written(tmp_path, name))
    theirs = of_transformers(tmp_path)
    assert source.tokenizer.get_vocab() == theirs.get_vocab()
    ids = source.tokenizer.encode(TEXT, add_special_tokens=False).ids
    assert ids == theirs(TEXT, add_special_tokens=False)["input_ids"]
    assert set(source.special) == {
        token.content for token in theirs.added_tokens_decoder.values() if token.special
    }
    for kind in ("eos", "bos", "pad"):
        expected = getattr(theirs, f"{kind}_token")
        assert expected is None or source.named(kind) == expected
    chat = ChatTokenizer.from_path(tmp_path, prompt_format="chatml", system_prompt="")
    assert chat.vocab_size == len(theirs) and chat.added_tokens == 0
    assert chat.stop_id == theirs.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_is_built_anew_has_the_same_ids(name: str, tmp_path: Path) -> None:
    """`transformers` makes a Qwen2Tokenizer of the vocabulary and merges, not of the file's rules;
    a Llama 2 tokenizer so made splits text after a control token in another way than its file,
    which is what is followed here."""
    source = TokenizerSource.read(written(tmp_path, name))
    config = json.loads((tmp_path / CONFIG).read_text()) if (tmp_path / CONFIG).exists() else {}
    (tmp_path / CONFIG).write_text(json.dumps(config | {"tokenizer_class": "Qwen2TokenizerFast"}))
    theirs = of_transformers(tmp_path)
    assert type(theirs).__name__ == "Qwen2Tokenizer"
    assert source.tokenizer.get_vocab() == theirs.get_vocab()
    if name != "white space around a token":  # whose flags it drops
        ids = source.tokenizer.encode(TEXT, add_special_tokens=False).ids
        assert ids == theirs(TEXT, add_special_tokens=False)["input_ids"]
    assert source.named("eos") == theirs.eos_token


def test_a_special_token_beyond_the_models_embeddings_is_left_out(tmp_path: Path) -> None:
    """Llama 2's <pad>, which many a folder has one above the vocabulary of its model."""
    folder = written(tmp_path, "tokenizer.json alone")
    size = TokenizerSource.read(folder).tokenizer.get_vocab_size()
    config = {"eos_token": "<|im_end|>", "pad_token": "<pad>"} | decoder(size, token("<pad>"))
    (folder / CONFIG).write_text(json.dumps(config))
    with_pad = ChatTokenizer.from_path(folder, prompt_format="chatml", system_prompt="")
    assert (with_pad.vocab_size, with_pad.pad_id) == (size + 1, size)
    (folder / "config.json").write_text(json.dumps({"vocab_size": size}))
    chat = ChatTokenizer.from_path(folder, prompt_format="chatml", system_prompt="")
    assert chat.vocab_size == size and chat.pad_id == chat.stop_id
    assert chat.prompt(turns("q")) == with_pad.prompt(turns("q"))


@pytest.mark.parametrize(
    ("file", "value", "said"),
    [
        (ADDED, [], "added_tokens.json: got list, wanted an object"),
        (NAMED, 3, "special_tokens_map.json: got int, wanted an object"),
        (CONFIG, {"added_tokens_decoder": []}, "'added_tokens_decoder' is not an object"),
        (CONFIG, {"added_tokens_decoder": {"x": token("a")}}, "'x' is not a token id"),
        (CONFIG, {"added_tokens_decoder": {"5": {}}}, "'5' is not a token id"),
    ],
)
def test_a_file_that_holds_something_else_is_named(
    file: str, value: Any, said: str, tmp_path: Path
) -> None:
    folder = written(tmp_path, "tokenizer.json alone")
    (folder / file).write_text(json.dumps(value))
    with pytest.raises(InputError, match=said):
        TokenizerSource.read(folder)
