"""Adapts any tokenizer so that it encodes text as text only, and never to control tokens.

`assembly.py` inserts control tokens between texts as ids. So the tokenizer's own post-processor,
truncation and padding are removed, and tokens that a prompt format needs are added.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simple_llama.data.tokenizer_source import (
    COMMON_TOKEN_NAMES,
    TokenizerSource,
    as_input_error,
    parse_tokenizer,
    pipeline_steps,
)
from simple_llama.data.words import WordEncoder, word_pattern
from simple_llama.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_ID = 2**24
"""Highest allowed id: some arrays have an entry for each id up to the highest."""


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """An adapted tokenizer: it encodes and decodes text, and knows the ids of control tokens."""

    tokenizer: "Tokenizer"
    after_control: "Tokenizer"
    """The same for text after a control token. Some tokenizers put a space before the first word of
    a conversation only."""
    published: "Tokenizer"
    """The tokenizer that is saved, and that decodes."""
    words: WordEncoder | None
    """Encodes most text faster, if it supports this tokenizer."""
    pad: str
    unk: str | None
    """The token for text that is not in the vocabulary, if there can be such text."""
    bos: str | None
    """The token with which each conversation begins, if any."""
    added: tuple[str, ...]
    """Control tokens that were added to the tokenizer."""
    base_vocab_size: int
    """The highest id plus one, before tokens were added."""

    def id_of(self, token: str) -> int:
        """The id of a token that is known to exist."""
        found = self.tokenizer.token_to_id(token)
        assert found is not None, token
        return int(found)

    @property
    def vocab_size(self) -> int:
        """The highest id plus one."""
        return int(max(self.tokenizer.get_vocab().values())) + 1

    def encode(self, texts: list[str], *, at_start: bool) -> list[NDArray[np.uint32]]:
        """The ids (T,) of each text. at_start: the texts start a conversation; otherwise they
        follow a control token.

        Raises InputError where the tokenizer fails because its parts do not fit together.
        """
        tokenizer = self.tokenizer if at_start else self.after_control
        with as_input_error("the tokenizer cannot encode a text"):
            found = [self.words.encode(text) if self.words else None for text in texts]
            others = [text for text, ids in zip(texts, found) if ids is None]
            encodings = iter(tokenizer.encode_batch_fast(others, add_special_tokens=False))
            return [
                np.array(next(encodings).ids, np.uint32) if ids is None else ids for ids in found
            ]

    def decode(self, ids: list[int]) -> str:
        """The text of ids, without control tokens. Raises InputError as `encode` does."""
        with as_input_error("the tokenizer cannot decode"):
            text: str = self.published.decode(ids, skip_special_tokens=True)
            return text

    def to_json(self) -> str:
        """The content of the tokenizer.json to save."""
        text: str = self.published.to_str(pretty=True)
        return text


def make_text_encoder(
    source: TokenizerSource,
    control: Sequence[str],
    stop: str,
    bos: str | None,
    *,
    keep: bool = False,
) -> TextEncoder:
    """Adapt a tokenizer and add the missing `control` tokens to it.

    bos: the control token with which each conversation begins, so that the saved tokenizer puts it
    before a text. keep: save the tokenizer as it was, rather than adapted.
    Raises InputError where control tokens cannot be told from text, or from each other.
    """
    layout = json.loads(json.dumps(source.layout))
    unk = _adapt_model(layout["model"], source)
    pad = source.named("pad") or unk or source.named("eos") or stop
    layout.update(truncation=None, padding=None)
    if layout.get("decoder") is None:
        layout["decoder"] = _decoder(layout.get("pre_tokenizer"))
    published = parse_tokenizer(source.path, layout) if keep else None
    # only the prompt format adds control tokens
    layout["post_processor"] = None
    special = {*control, pad, *([unk] if unk in COMMON_TOKEN_NAMES["unk"] else [])}
    _adapt_added_tokens(layout, source, special)
    missing = [token for token in control if source.tokenizer.token_to_id(token) is None]
    tokenizer = _ready(source.path, layout, missing, bos)
    encoder = TextEncoder(
        tokenizer=tokenizer,
        after_control=_after_control(source.path, layout, missing, bos) or tokenizer,
        published=published or tokenizer,
        words=_words(source.path, layout, missing, bos),
        pad=pad,
        unk=unk,
        bos=bos,
        added=tuple(missing),
        base_vocab_size=max(source.tokenizer.get_vocab().values(), default=-1) + 1,
    )
    _check_ids(source.path, encoder, control)
    return encoder


def _check_ids(path: Path, encoder: TextEncoder, control: Sequence[str]) -> None:
    if encoder.unk in control:
        raise InputError(f"{path}: {encoder.unk} cannot stand for unknown text, wanted <UNK>")
    ids = list(encoder.tokenizer.get_vocab().values())
    if max(ids) > MAX_ID:
        raise InputError(f"{path}: a token has the id {max(ids)}, wanted at most {MAX_ID}")
    own = [encoder.id_of(token) for token in control]
    if len(set(own)) < len(own):
        raise InputError(f"{path}: two of {', '.join(control)} share an id")
    for token in encoder.added:
        if ids.count(encoder.id_of(token)) > 1:
            raise InputError(f"{path}: its ids have gaps, so {token} cannot be added")


def _ready(
    path: Path, layout: dict[str, Any], missing: Sequence[str], bos: str | None
) -> "Tokenizer":
    """Parse the tokenizer, add the missing tokens, and let it encode names of control tokens as
    text.

    Other programs that load the saved tokenizer get `bos` before each text. We encode with
    add_special_tokens=False."""
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing

    tokenizer = parse_tokenizer(path, layout)
    with as_input_error(f"{path}: not a tokenizer"):
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in missing])
        if bos is not None:
            ids = [(bos, tokenizer.token_to_id(bos))]
            tokenizer.post_processor = TemplateProcessing([bos, "$A"], [bos, "$A", "$B:1"], ids)
    tokenizer.encode_special_tokens = True
    return tokenizer


def _after_control(
    path: Path, layout: dict[str, Any], missing: Sequence[str], bos: str | None
) -> "Tokenizer | None":
    """The tokenizer for text after a control token; None if it is the same."""
    differs = False
    layout = json.loads(json.dumps(layout))
    for step in pipeline_steps(layout.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"
            differs = True
    return _ready(path, layout, missing, bos) if differs else None


def _words(
    path: Path, layout: dict[str, Any], missing: Sequence[str], bos: str | None
) -> WordEncoder | None:
    """The fast encoder, if `word_pattern` supports the tokenizer."""
    found = word_pattern(layout)
    if found is None:
        return None
    pattern, space_first = found
    whole = {"type": "ByteLevel", "use_regex": False}
    whole |= {"add_prefix_space": False, "trim_offsets": True}
    added = (token for token in layout["added_tokens"] if not token["special"])
    return WordEncoder(
        _ready(path, {**layout, "pre_tokenizer": whole}, missing, bos),
        pattern,
        space_first=space_first,
        added=tuple(token["content"] for token in added),
    )


def _adapt_model(model: dict[str, Any], source: TokenizerSource) -> str | None:
    """Make the model deterministic and let it keep unknown text; returns the unknown token."""
    if model.get("dropout") is not None:  # BPE dropout gives another encoding each time
        model["dropout"] = None
    unk = source.unk
    if isinstance(model.get("vocab"), list):  # Unigram
        if model.get("unk_id") is None and unk is not None:
            model["unk_id"] = source.tokenizer.token_to_id(unk)
        known = model.get("unk_id")
        return source.tokenizer.id_to_token(known) if isinstance(known, int) else None
    if model.get("unk_token") is None and unk is not None:
        # without an unknown token, BPE silently drops unknown characters
        model["unk_token"] = unk
    token = model.get("unk_token")
    return token if isinstance(token, str) and source.has(token) else None


def _adapt_added_tokens(layout: dict[str, Any], source: TokenizerSource, special: set[str]) -> None:
    """Make special tokens match regardless of the text around them, because they are inserted as
    ids."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {**token, **plain, "special": True} if token["content"] in special else token
        for token in layout.get("added_tokens") or []
    ]
    known = {token["content"] for token in added}
    for token in sorted(special - known):
        if (token_id := source.tokenizer.token_to_id(token)) is not None:
            added.append({"id": token_id, "content": token, **plain, "special": True})
    layout["added_tokens"] = sorted(added, key=lambda token: int(token["id"]))


def _decoder(pre_tokenizer: Any) -> dict[str, Any] | None:
    """The byte-level decoder for a byte-level tokenizer that does not name one."""
    for step in pipeline_steps(pre_tokenizer, "pretokenizers"):
        if step.get("type") == "ByteLevel":
            bytes_to_text = {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            }
            if not step.get("add_prefix_space"):
                return bytes_to_text
            # removes the space that encoding put before the text
            strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
            return {"type": "Sequence", "decoders": [bytes_to_text, strip]}
    return None


def special_ids(tokenizer: "Tokenizer") -> list[int]:
    """Ids of the special tokens among the added tokens."""
    added = tokenizer.get_added_tokens_decoder()
    return [token_id for token_id, token in added.items() if token.special]
