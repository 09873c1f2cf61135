"""Reads the settings and added tokens of a tokenizer's folder from up to five files.

    tokenizer.json           the vocabulary, and tokens added to it
    tokenizer_config.json    eos_token and so on; further tokens in added_tokens_decoder
    special_tokens_map.json  eos_token and so on \\ read if tokenizer_config.json has no
    added_tokens.json        further tokens      / added_tokens_decoder
    config.json              how many tokens the model has an embedding for

The first four are combined as in `transformers` 5: PreTrainedTokenizerBase._from_pretrained and
TokenizersBackend.__init__.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simple_llama.errors import InputError
from simple_llama.files import read_json

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

CONFIG_FILE, SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE, MODEL_CONFIG_FILE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "config.json",
)
MAX_CONFIG_BYTES = 16 * 2**20
SPECIAL_TOKEN_KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""In the order in which missing tokens are added."""
ADDED_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json ({} if there is none), merged with special_tokens_map.json and
    added_tokens.json, which older versions write. Raises InputError."""
    config = read_object(folder / CONFIG_FILE)
    if "added_tokens_decoder" in config:
        return config
    config |= read_object(folder / SPECIAL_TOKENS_FILE)
    special = {content(value) for key, value in config.items() if key.endswith("_token")}
    special |= {content(token) for token in _listed(config)}
    added = {
        str(token_id): {
            "content": token,
            "normalized": token not in special,
            "special": token in special,
        }
        for token, token_id in read_object(folder / ADDED_TOKENS_FILE).items()
    }
    return {**config, "added_tokens_decoder": added} if added else config


def with_folder_tokens(
    tokenizer: "Tokenizer", layout: dict[str, Any], config: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """The content of tokenizer.json with the tokens of the other files added, and without special
    tokens for which the folder's model has no embedding. Raises InputError."""
    known = {repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
    missing = [
        token for _, token in sorted(_of_decoder(folder, config)) if repr(token) not in known
    ]
    names = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    names |= {token.content for token in missing}
    for token in _of_names(folder, config):
        if token.content not in names:
            names.add(token.content)
            missing.append(token)
    if missing:
        tokenizer.add_tokens(missing)
        layout = json.loads(tokenizer.to_str())
    size = read_object(folder / MODEL_CONFIG_FILE).get("vocab_size")
    added = layout.get("added_tokens")
    if not isinstance(size, int) or not isinstance(added, list):
        return layout
    kept = [token for token in added if not token["special"] or token["id"] < size]
    return layout if len(kept) == len(added) else {**layout, "added_tokens": kept}


def _of_decoder(folder: Path, config: dict[str, Any]) -> Iterable[tuple[int, "AddedToken"]]:
    decoder = config.get("added_tokens_decoder", {})
    if not isinstance(decoder, dict):
        raise InputError(f"{folder / CONFIG_FILE}: 'added_tokens_decoder' is not an object")
    for token_id, value in decoder.items():
        if not str(token_id).isdecimal() or content(value) is None:
            raise InputError(
                f"{folder / CONFIG_FILE}: added_tokens_decoder: {token_id!r} is not a token id"
            )
        yield int(token_id), _token(value, special=False)


def _of_names(folder: Path, config: dict[str, Any]) -> list["AddedToken"]:
    standard = [f"{kind}_token" for kind in SPECIAL_TOKEN_KINDS]
    others = [key for key in config if key.endswith("_token") and key not in standard]
    values = [config.get(key) for key in (*standard, *others)] + _listed(config)
    return [_token(value, special=True) for value in values if content(value) is not None]


def _listed(config: dict[str, Any]) -> list[Any]:
    listed = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    if isinstance(listed, dict):
        return list(listed.values())
    return listed if isinstance(listed, list) else []


def _token(value: Any, *, special: bool) -> "AddedToken":
    from tokenizers import AddedToken

    if isinstance(value, str):
        return AddedToken(value, special=True)
    flags = {flag: value[flag] for flag in ADDED_TOKEN_FLAGS if isinstance(value.get(flag), bool)}
    if special:
        flags["special"] = True
    return AddedToken(value["content"], **flags)


def content(value: Any) -> str | None:
    """The text of a token that is written as a string or an object; None if it is neither."""
    if isinstance(value, dict):
        value = value.get("content")
    if not isinstance(value, str) or not value:
        return None
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON may hold a lone surrogate
        return None
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} if there is no such file. Raises InputError."""
    if not path.exists():
        return {}
    check_file(path, MAX_CONFIG_BYTES, f"a {path.name}")
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path}: got {type(found).__name__}, wanted an object")
    return found


def check_file(path: Path, most: int, wanted: str) -> None:
    """Raises InputError where a path is not a file of at most `most` bytes. Call it before opening
    the path: reading a pipe or device might never end."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, wanted {wanted}") from None
    if not path.is_file():
        raise InputError(f"{path}: not a file, wanted {wanted}")
    if size > most:
        raise InputError(f"{path}: {size} bytes, wanted at most {most}")
