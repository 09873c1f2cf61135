"""A tokenizer.json → a tokenizer that encodes text and nothing but text.

The control tokens of the prompt format must be in it; `prompt.py` puts them between the texts.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simple_llama.errors import InputError
from simple_llama.files import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTROL_TOKENS = ("<PAD>", "<UNK>", "<SOT>", "<EOT>", "<SOU>", "<EOU>", "<SOA>", "<EOA>")
MAX_FILE_BYTES = 256 * 2**20
MAX_ID = 2**24
"""A few tables have an entry for each id up to the highest."""


def load_tokenizer(path: Path) -> "Tokenizer":
    """The tokenizer of a file, changed so that it encodes text and nothing but text.

    Raises InputError where the file is no tokenizer.json or lacks a control token.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, wanted a tokenizer.json") from None
    if not path.is_file():
        raise InputError(f"{path}: not a file, wanted a tokenizer.json")
    if size > MAX_FILE_BYTES:
        raise InputError(f"{path}: {size} bytes, a tokenizer has at most {MAX_FILE_BYTES}")
    layout = read_json(path)
    if not isinstance(layout, dict) or not isinstance(layout.get("model"), dict):
        raise InputError(f"{path}: not a tokenizer: no 'model' in it")
    tokenizer = _parse(path, layout)
    missing = [token for token in CONTROL_TOKENS if tokenizer.token_to_id(token) is None]
    if missing:
        raise InputError(f"{path}: no token {', '.join(missing)} (a SimpleLLaMA prompt needs them)")
    _adapt(layout, tokenizer)
    tokenizer = _parse(path, layout)
    tokenizer.encode_special_tokens = True
    ids = {tokenizer.token_to_id(token) for token in CONTROL_TOKENS}
    if len(ids) < len(CONTROL_TOKENS):
        raise InputError(f"{path}: two of {', '.join(CONTROL_TOKENS)} share an id")
    highest = max(tokenizer.get_vocab().values())
    if highest > MAX_ID:
        raise InputError(f"{path}: a token has the id {highest}, wanted at most {MAX_ID}")
    unknown = getattr(tokenizer.model, "unk_token", None)
    if unknown in CONTROL_TOKENS and unknown != "<UNK>":
        raise InputError(f"{path}: {unknown} cannot stand for unknown text, wanted <UNK>")
    return tokenizer


def _parse(path: Path, layout: dict[str, Any]) -> "Tokenizer":
    from tokenizers import Tokenizer

    with _refusing(f"{path}: not a tokenizer"):
        return Tokenizer.from_str(json.dumps(layout))


def encode_texts(tokenizer: "Tokenizer", texts: list[str]) -> list[list[int]]:
    """The ids of each text. Raises InputError where the tokenizer's parts do not work together."""
    with _refusing("the tokenizer cannot encode a text"):
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def decode_ids(tokenizer: "Tokenizer", ids: list[int]) -> str:
    """The text of ids without control tokens. Raises InputError as encode_texts does."""
    with _refusing("the tokenizer cannot decode"):
        text: str = tokenizer.decode(ids, skip_special_tokens=True)
        return text


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turn what the Rust library raises, of whatever type, into an InputError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        text = " ".join(str(error).split())
        text = text if len(text) <= 200 else text[:197] + "..."
        raise InputError(f"{what}: {text}") from None


def _adapt(layout: dict[str, Any], tokenizer: "Tokenizer") -> None:
    """Change a tokenizer.json so that text is encoded as SimpleLLaMA prompts need it."""
    # what adds a token or cuts one off is none of the prompt format
    layout.update(post_processor=None, truncation=None, padding=None)
    model = layout["model"]
    if model.get("dropout") is not None:  # of BPE merges: another encoding each time
        model["dropout"] = None
    if isinstance(model.get("vocab"), list):  # Unigram
        if model.get("unk_id") is None:
            model["unk_id"] = tokenizer.token_to_id("<UNK>")
    elif model.get("unk_token") is None:
        # without one, BPE drops characters it does not know
        model["unk_token"] = "<UNK>"
    added = layout.get("added_tokens") or []
    for token in added:
        if token["content"] in CONTROL_TOKENS:
            token["special"] = True
    known = {token["content"] for token in added}
    added = added + [
        {
            "id": tokenizer.token_to_id(token),
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token in CONTROL_TOKENS
        if token not in known
    ]
    layout["added_tokens"] = sorted(added, key=lambda token: int(token["id"]))
    for step in _steps(layout.get("pre_tokenizer"), "pretokenizers"):
        # 'first' means the start of the whole prompt, which is a control token
        if step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"
    if layout.get("decoder") is None:
        layout["decoder"] = _decoder(layout.get("pre_tokenizer"))


def _decoder(pre_tokenizer: Any) -> dict[str, Any] | None:
    """The byte-level decoder where the tokenizer is byte-level and says nothing."""
    for step in _steps(pre_tokenizer, "pretokenizers"):
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


def _steps(part: Any, key: str) -> list[dict[str, Any]]:
    """A pre-tokenizer's steps, be it one or a sequence."""
    if not isinstance(part, dict):
        return []
    steps = part.get(key) if part.get("type") == "Sequence" else [part]
    return [step for step in steps or [] if isinstance(step, dict)]


def unknown_id(tokenizer: "Tokenizer", otherwise: int) -> int:
    """The id that stands for what the vocabulary lacks."""
    token = getattr(tokenizer.model, "unk_token", None)
    found = tokenizer.token_to_id(token) if isinstance(token, str) else None
    return otherwise if found is None else int(found)


def special_ids(tokenizer: "Tokenizer") -> list[int]:
    """Ids of the added tokens that are no text."""
    added = tokenizer.get_added_tokens_decoder()
    return [token_id for token_id, token in added.items() if token.special]
