"""Reads mixture.yaml of a folder of conversations: how often each file's examples are trained on.

    chat.jsonl: 2.0        # each example twice per epoch
    code/python.json: 0.5  # half of the examples, chosen by a hash

A file that is not named has weight 1. Weight w gives an example floor(w) copies, plus one if a hash
of (seed, example) is below the fractional part. So adding rows never changes the copies of other
rows, and a larger weight only adds copies. An example in the validation split stands there once,
whatever its weight, so that no example counts twice in a metric.
"""

import hashlib
import os
import unicodedata
from pathlib import Path

from simple_llama.data.sources import check_inside, find_files, name_in
from simple_llama.errors import InputError
from simple_llama.strict_yaml import check_type, did_you_mean, read_mapping, shown

MIXTURE_FILE = "mixture.yaml"
MAX_WEIGHT = 100.0


class Mixture:
    """The weight of each file, and the copies that follow from it."""

    def __init__(self, weights: dict[str, float], seed: int) -> None:
        self.weights = weights
        self._key = hashlib.blake2b(f"mixture {seed}".encode(), digest_size=32).digest()

    @classmethod
    def of(cls, path: str | Path, seed: int) -> "Mixture":
        """Read a folder's mixture.yaml; without one, and for a file, all weights are 1. Raises
        InputError."""
        file = Path(path) / MIXTURE_FILE
        if not os.path.isdir(path) or not os.path.lexists(file):
            return cls({}, seed)
        check_inside(file, Path(path))
        names = dict.fromkeys(name_in(found, path) for found in find_files(path))
        composed = {_nfc(name): name for name in names}
        weights = {}
        for written, value in read_mapping(file).items():
            # macOS decomposes accented letters in file names (NFD), editors compose them (NFC)
            name = written if written in names else composed.get(_nfc(str(written)), written)
            if name not in names:
                close = did_you_mean(name, names)
                raise InputError(f"{file}: {shown(name)} is no file of conversations here{close}")
            weights[name] = check_type(f"{file}: {name}", value, float)
            if not 0 <= weights[name] <= MAX_WEIGHT:
                raise InputError(f"{file}: {name}: got {value}, wanted 0 to {MAX_WEIGHT:g}")
        return cls(weights, seed)

    def copies(self, file: str, digest: bytes) -> int:
        """How often an example of a file stands in the training data.

        digest: a hash of its conversation."""
        whole, part = divmod(self.weights.get(file, 1.0), 1)
        if not part:
            return int(whole)
        place = hashlib.blake2b(digest, digest_size=8, key=self._key).digest()
        return int(whole) + (int.from_bytes(place, "big") < part * 2**64)


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)
