"""The prepare stage: removes duplicates, applies the mixture and splits into train and val.

Nothing is lost: kept + rejected + duplicates = examples; examples that the mixture leaves out are
counted separately. A duplicate equals another conversation in every character, because case and
indentation matter in code. The split of an example depends only on the seed and on its normalised
first prompt. So no prompt is in both splits, and adding rows never moves an example.
"""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from simple_llama.data.examples import to_example
from simple_llama.data.formats import ConversationReader
from simple_llama.data.messages import Message
from simple_llama.data.mixture import MIXTURE_FILE, Mixture
from simple_llama.data.normalisation import normalised, prompt_pattern
from simple_llama.data.rows import Row, RowError, read_rows
from simple_llama.data.supervision import UntrainedRow
from simple_llama.errors import InputError
from simple_llama.files import atomic_write
from simple_llama.params.prepare import PrepareParams

MAX_PARSED_CHARACTERS = 2**16
"""A rejected row up to this length is recorded parsed; a longer one as text, which takes less
memory."""

RECORD = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


@dataclass
class Counts:
    """How many rows were kept, rejected or left out."""

    duplicates: int = 0
    train: int = 0
    val: int = 0
    left_out: int = 0
    """Left out by a mixture weight below 1."""
    untrained: int = 0
    """Left out because the row's own flags say so."""
    repeated: int = 0
    """Additional copies in train, by a mixture weight above 1."""
    rejected_by_reason: Counter[str] = field(default_factory=Counter)
    first_rejected: str = ""
    """Its id and reason."""

    @property
    def rejected(self) -> int:
        return self.rejected_by_reason.total()

    @property
    def kept(self) -> int:
        return self.train + self.val

    @property
    def examples(self) -> int:
        return self.kept + self.rejected + self.duplicates


def prepare(
    params: PrepareParams,
    folder: str | Path,
    watch: Callable[[Iterable[Row]], Iterable[Row]] = iter,
) -> dict[str, Any]:
    """Write train, val, rejected and duplicates .jsonl into `folder`; returns the report.

    Memory: about 100 bytes per example. `watch` wraps the rows, to show progress. Raises InputError
    where the input cannot be read, more than max_rejected is rejected, or a split stays empty. Then
    train and val are not written; rejected and duplicates are if all input could be read.
    """
    folder = Path(folder)
    counts, likeness = Counts(), _Likeness()
    with atomic_write(folder / "train.jsonl") as train, atomic_write(folder / "val.jsonl") as val:
        with (
            atomic_write(folder / "rejected.jsonl") as rejected,
            atomic_write(folder / "duplicates.jsonl") as duplicates,
        ):
            seen: set[bytes] = set()
            side = _Side(params.seed, params.train_split)
            read = ConversationReader(params.data_format)
            mixture = Mixture.of(params.ft_json_path, params.seed)
            for row in watch(read_rows(params.ft_json_path)):
                try:
                    example = to_example(row, read, params.system_prompt)
                except RowError as error:
                    _reject(row, error, rejected, counts)
                    continue
                except UntrainedRow:
                    counts.untrained += 1
                    continue
                digest = _digest(example.messages)
                if digest in seen:
                    counts.duplicates += 1
                    duplicates.write(f"{RECORD({'id': row.id})}\n".encode())
                    continue
                copies = mixture.copies(row.file, digest)
                if not copies:
                    # not added to `seen`: a file with a larger weight may hold the example too
                    counts.left_out += 1
                    continue
                seen.add(digest)
                trains = side.trains(example.first_prompt)
                likeness.add(example.first_prompt, trains)
                counts.train += trains
                counts.val += not trains
                line = f"{RECORD(example.record())}\n".encode()
                if trains:
                    counts.repeated += copies - 1
                    train.writelines([line] * copies)
                else:
                    val.write(line)
        _check_counts(counts, params, folder / "rejected.jsonl")
    return {
        "examples": counts.examples,
        "kept": counts.kept,
        "rejected": counts.rejected,
        "duplicates": counts.duplicates,
        "train": counts.train,
        "val": counts.val,
        "left_out": counts.left_out,
        "repeated": counts.repeated,
        "untrained": counts.untrained,
        "files_by_format": dict(sorted(Counter(read.format_of_file.values()).items())),
        "dropped_keys": dict(sorted(read.dropped_keys.items())),
        "rejected_by_reason": dict(sorted(counts.rejected_by_reason.items())),
        "val_prompts_like_train": likeness.share(),
    }


def _digest(messages: list[Message]) -> bytes:
    """16 bytes that are equal if the conversations are equal."""
    return hashlib.blake2b(RECORD(messages).encode(), digest_size=16).digest()


class _Side:
    """Chooses the split of a first prompt: a keyed hash of it is compared with train_split."""

    def __init__(self, seed: int, train_split: float) -> None:
        self.key = hashlib.blake2b(str(seed).encode(), digest_size=32).digest()
        self.limit = int(train_split * 2**64)

    def trains(self, prompt: str) -> bool:
        digest = hashlib.blake2b(normalised(prompt).encode(), digest_size=8, key=self.key).digest()
        return int.from_bytes(digest, "big") < self.limit


class _Likeness:
    """The share of validation examples whose first prompt has the pattern of a training prompt.

    It is an upper bound for prompts that differ from a training prompt only in digits or names. It
    takes 8 bytes per example.
    """

    def __init__(self) -> None:
        self.digests = {True: array("Q"), False: array("Q")}

    def add(self, prompt: str, trains: bool) -> None:
        digest = hashlib.blake2b(prompt_pattern(prompt).encode(), digest_size=8).digest()
        self.digests[trains].append(int.from_bytes(digest, "big"))

    def share(self) -> float:
        import numpy as np

        train, val = (np.array(self.digests[side], np.uint64) for side in (True, False))
        return round(float(np.isin(val, train).mean()), 6)


def _reject(row: Row, error: RowError, file: BinaryIO, counts: Counts) -> None:
    counts.rejected_by_reason[error.reason] += 1
    counts.first_rejected = counts.first_rejected or f"{row.id}: {error}"
    record = {"id": row.id, "reason": str(error)}
    content = row.value if len(row.text) <= MAX_PARSED_CHARACTERS else row.text
    try:
        line = RECORD({**record, "content": content}).encode()
    except (TypeError, ValueError, RecursionError):
        # a repeated key, NaN or a lone surrogate cannot be written as JSON: record the row's text
        line = RECORD({**record, "content": row.text}).encode()
    file.write(line + b"\n")


def _check_counts(counts: Counts, params: PrepareParams, rejected: Path) -> None:
    if counts.rejected > params.max_rejected * counts.examples:
        [(reason, times)] = counts.rejected_by_reason.most_common(1)
        raise InputError(
            f"{params.ft_json_path}: {counts.rejected} of {counts.examples} examples rejected, "
            f"max_rejected allows a share of {params.max_rejected}; most often "
            f"{reason!r} ({times}), first {counts.first_rejected}; all in {rejected}"
        )
    if not counts.kept:
        left_out = f", {counts.left_out} left out by {MIXTURE_FILE}" if counts.left_out else ""
        raise InputError(
            f"{params.ft_json_path}: no example left{left_out}; the rejected are in {rejected}"
        )
    for side, number in (("training", counts.train), ("validation", counts.val)):
        if not number:
            raise InputError(
                f"{params.ft_json_path}: no example on the {side} side of {counts.kept} "
                f"(train_split {params.train_split}): more distinct prompts, or another share"
            )
