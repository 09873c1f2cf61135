"""Reads from a model's folder the token ids at which generation stops; a model may have several."""

from pathlib import Path

from simple_llama.data.tokenizer_folder import read_object
from simple_llama.errors import InputError

GENERATION_CONFIG_FILE = "generation_config.json"


def read_eos_token_ids(folder: str | Path) -> list[int]:
    """The eos_token_id, one or several, in generation_config.json; without that file, in
    config.json, as in `transformers`. [] if it is missing or `folder` is not a folder.

    Raises InputError where its values are not token ids.
    """
    path = Path(folder, GENERATION_CONFIG_FILE)
    if not path.exists():
        path = Path(folder, "config.json")
    found = read_object(path).get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    for one in ids:
        if not isinstance(one, int) or isinstance(one, bool):
            raise InputError(f"{path}: eos_token_id: got {one!r}, wanted token ids")
    return ids


def as_eos_token_id(ids: list[int]) -> int | list[int]:
    """The ids as a value of eos_token_id: an integer if there is one, else a list."""
    return ids[0] if len(ids) == 1 else ids
