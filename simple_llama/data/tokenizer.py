"""A tokenizer of any origin → one that encodes text and nothing but text.

Control tokens are put between the texts by `prompt.py`, as ids. What a tokenizer would add or cut
off by itself is taken away; what it lacks for a prompt format is added.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simple_llama.data.tokenizer_source import KNOWN, TokenizerSource, parse, refusing, steps
from simple_llama.data.words import Words, cut
from simple_llama.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_ID = 2**24
"""A few tables have an entry for each id up to the highest."""


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """A tokenizer made ready: it encodes and decodes text, and knows its control tokens by id."""

    tokenizer: "Tokenizer"
    within: "Tokenizer"
    """The same for text after a control token, where some put no space before a first word."""
    public: "Tokenizer"
    """What is published, and decodes."""
    words: Words | None
    """The fast way for text that can be cut into words here."""
    pad: str
    unk: str | None
    """What stands for text that the vocabulary lacks; some lack none."""
    bos: str | None
    """What each conversation begins with."""
    added: tuple[str, ...]
    """Control tokens that the tokenizer had not."""
    base_vocab_size: int
    """Its highest id plus one, before they were added."""

    def id_of(self, token: str) -> int:
        """Of a token that is known to be there."""
        found = self.tokenizer.token_to_id(token)
        assert found is not None, token
        return int(found)

    @property
    def vocab_size(self) -> int:
        """The highest id plus one."""
        return int(max(self.tokenizer.get_vocab().values())) + 1

    def encode(self, texts: list[str], *, at_start: bool) -> list[NDArray[np.uint32]]:
        """The ids (T,) of each text, at the start of a conversation or after a control token.

        Raises InputError where the tokenizer's parts do not work together.
        """
        tokenizer = self.tokenizer if at_start else self.within
        with refusing("the tokenizer cannot encode a text"):
            found = [self.words.encode(text) if self.words else None for text in texts]
            others = [text for text, ids in zip(texts, found) if ids is None]
            encodings = iter(tokenizer.encode_batch_fast(others, add_special_tokens=False))
            return [
                np.array(next(encodings).ids, np.uint32) if ids is None else ids for ids in found
            ]

    def decode(self, ids: list[int]) -> str:
        """The text of ids without control tokens. Raises InputError as encode does."""
        with refusing("the tokenizer cannot decode"):
            text: str = self.public.decode(ids, skip_special_tokens=True)
            return text

    def to_json(self) -> str:
        """A tokenizer.json."""
        text: str = self.public.to_str(pretty=True)
        return text


def adapt(
    source: TokenizerSource,
    control: Sequence[str],
    stop: str,
    bos: str | None,
    *,
    keep: bool = False,
) -> TextEncoder:
    """The tokenizer, changed so that it encodes text alone, with all `control` tokens in it.

    bos: of those, what stands first in each conversation and so before a text of its own too.
    keep: it is published as it was, not as it encodes here.
    Raises InputError where one of them cannot be told from text.
    """
    layout = json.loads(json.dumps(source.layout))
    unk = _adapt_model(layout["model"], source)
    pad = source.named("pad") or unk or source.named("eos") or stop
    layout.update(truncation=None, padding=None)
    if layout.get("decoder") is None:
        layout["decoder"] = _decoder(layout.get("pre_tokenizer"))
    public = parse(source.path, layout) if keep else None
    # what adds a token is none of the prompt format
    layout["post_processor"] = None
    special = {*control, pad, *([unk] if unk in KNOWN["unk"] else [])}
    _adapt_added_tokens(layout, source, special)
    missing = [token for token in control if source.tokenizer.token_to_id(token) is None]
    tokenizer = _ready(source.path, layout, missing, bos)
    encoder = TextEncoder(
        tokenizer=tokenizer,
        within=_within(source.path, layout, missing, bos) or tokenizer,
        public=public or tokenizer,
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
    """Parsed, with the missing tokens, and blind to control tokens in text.

    `bos` is put before texts that others encode by themselves; we never let it."""
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing

    tokenizer = parse(path, layout)
    with refusing(f"{path}: not a tokenizer"):
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in missing])
        if bos is not None:
            ids = [(bos, tokenizer.token_to_id(bos))]
            tokenizer.post_processor = TemplateProcessing([bos, "$A"], [bos, "$A", "$B:1"], ids)
    tokenizer.encode_special_tokens = True
    return tokenizer


def _within(
    path: Path, layout: dict[str, Any], missing: Sequence[str], bos: str | None
) -> "Tokenizer | None":
    """For text that is not the first of a conversation, where that makes a difference."""
    differs = False
    layout = json.loads(json.dumps(layout))
    for step in steps(layout.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"
            differs = True
    return _ready(path, layout, missing, bos) if differs else None


def _words(
    path: Path, layout: dict[str, Any], missing: Sequence[str], bos: str | None
) -> Words | None:
    """Where it is known how the tokenizer cuts text."""
    found = cut(layout)
    if found is None:
        return None
    pattern, space_first = found
    whole = {"type": "ByteLevel", "use_regex": False}
    whole |= {"add_prefix_space": False, "trim_offsets": True}
    added = (token for token in layout["added_tokens"] if not token["special"])
    return Words(
        _ready(path, {**layout, "pre_tokenizer": whole}, missing, bos),
        pattern,
        space_first=space_first,
        added=tuple(token["content"] for token in added),
    )


def _adapt_model(model: dict[str, Any], source: TokenizerSource) -> str | None:
    """Encode always the same and drop nothing; the token that stands for unknown text."""
    if model.get("dropout") is not None:  # of BPE merges: another encoding each time
        model["dropout"] = None
    unk = source.unk
    if isinstance(model.get("vocab"), list):  # Unigram
        if model.get("unk_id") is None and unk is not None:
            model["unk_id"] = source.tokenizer.token_to_id(unk)
        known = model.get("unk_id")
        return source.tokenizer.id_to_token(known) if isinstance(known, int) else None
    if model.get("unk_token") is None and unk is not None:
        # without one, BPE drops characters it does not know
        model["unk_token"] = unk
    token = model.get("unk_token")
    return token if isinstance(token, str) and source.has(token) else None


def _adapt_added_tokens(layout: dict[str, Any], source: TokenizerSource, special: set[str]) -> None:
    """Those that are special are so whatever stands around them: as when they are put in as ids."""
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
    """The byte-level decoder where the tokenizer is byte-level and says nothing."""
    for step in steps(pre_tokenizer, "pretokenizers"):
        if step.get("type") == "ByteLevel":
            bytes_to_text = {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            }
            if not step.get("add_prefix_space"):
                return bytes_to_text
            # takes away the space that encoding put before the text
            strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
            return {"type": "Sequence", "decoders": [bytes_to_text, strip]}
    return None


def special_ids(tokenizer: "Tokenizer") -> list[int]:
    """Ids of the added tokens that are no text."""
    added = tokenizer.get_added_tokens_decoder()
    return [token_id for token_id, token in added.items() if token.special]
