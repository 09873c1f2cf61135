"""mixture.yaml of a folder of conversations: how often the examples of each file are trained on.

    chat.jsonl: 2.0        # each example twice per epoch
    code/python.json: 0.5  # one half of them, chosen by a hash

A file that is not named has weight 1. Weight w gives an example floor(w) copies, and one more
where a hash of (seed, example) lies below the fractional part: so more rows never change what
becomes of the others, and a larger weight only ever adds. Validation takes each example that has a
copy once: what is measured does not count twice.
"""

import hashlib
import os
import unicodedata
from pathlib import Path

from simple_llama.data.sources import check_inside, find_files, name_in
from simple_llama.errors import InputError
from simple_llama.strict_yaml import did_you_mean, read_mapping, shown, typed

NAME = "mixture.yaml"
MAX_WEIGHT = 100.0


class Mixture:
    """The weights of files."""

    def __init__(self, weights: dict[str, float], seed: int) -> None:
        self.weights = weights
        self._key = hashlib.blake2b(f"mixture {seed}".encode(), digest_size=32).digest()

    @classmethod
    def of(cls, path: str | Path, seed: int) -> "Mixture":
        """That of a folder; a file, or a folder without one, has none. Raises InputError."""
        file = Path(path) / NAME
        if not os.path.isdir(path) or not os.path.lexists(file):
            return cls({}, seed)
        check_inside(file, Path(path))
        names = dict.fromkeys(name_in(found, path) for found in find_files(path))
        composed = {_nfc(name): name for name in names}
        weights = {}
        for written, value in read_mapping(file).items():
            # a Mac decomposes the letters of file names, an editor does not
            name = written if written in names else composed.get(_nfc(str(written)), written)
            if name not in names:
                close = did_you_mean(name, names)
                raise InputError(f"{file}: {shown(name)} is no file of conversations here{close}")
            weights[name] = typed(f"{file}: {name}", value, float)
            if not 0 <= weights[name] <= MAX_WEIGHT:
                raise InputError(f"{file}: {name}: got {value}, wanted 0 to {MAX_WEIGHT:g}")
        return cls(weights, seed)

    def copies(self, file: str, digest: bytes) -> int:
        """How often an example stands in the training data; its digest is the conversation's."""
        whole, part = divmod(self.weights.get(file, 1.0), 1)
        if not part:
            return int(whole)
        place = hashlib.blake2b(digest, digest_size=8, key=self._key).digest()
        return int(whole) + (int.from_bytes(place, "big") < part * 2**64)


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)
