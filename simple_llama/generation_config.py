"""Which token ids end a text, as a model's folder says it: a model may have several."""

from pathlib import Path

from simple_llama.data.tokenizer_folder import read_object
from simple_llama.errors import InputError

GENERATION = "generation_config.json"


def read_end_ids(folder: str | Path) -> list[int]:
    """The eos_token_id, one or several, of its generation_config.json, or where there is none of
    its config.json, as `transformers` has it. Empty where neither says, or it is no folder.

    Raises InputError where they are no ids.
    """
    path = Path(folder, GENERATION)
    if not path.exists():
        path = Path(folder, "config.json")
    found = read_object(path).get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    for one in ids:
        if not isinstance(one, int) or isinstance(one, bool):
            raise InputError(f"{path}: eos_token_id: got {one!r}, wanted token ids")
    return ids


def as_written(ids: list[int]) -> int | list[int]:
    """The ids as both files have them: one is no list."""
    return ids[0] if len(ids) == 1 else ids
