"""Rows → examples: validation, de-duplication and the split, with nothing lost.

kept + rejected + duplicates = examples. The side of an example depends on the seed and its first
prompt alone, so a prompt never stands on both sides and adding rows never moves an old one.
"""

import hashlib
import json
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from simple_llama.data.formats import Conversation, Message, to_conversation
from simple_llama.data.rows import Row, RowError, read_rows
from simple_llama.errors import InputError
from simple_llama.files import atomic_write
from simple_llama.params import PrepareParams

DIGITS = re.compile(r"\d+")
WORD = re.compile(r"[^\W\d_]+")
# WORD's capitalised ones, where the text is ASCII
CAPITALISED_ASCII = re.compile(r"(?<![A-Za-z])[A-Z][A-Za-z]*")
FORBIDDEN = re.compile("[\0\ud800-\udfff]")

MAX_CHARACTERS = 4 * 2**20
"""Of a conversation. More would make over a million tokens, each of which costs the tokenizer more
than 100 bytes."""
MAX_PATTERN = 2**14
"""Characters of a prompt that its pattern is made of."""
MAX_RUN = 32
"""Combining marks in a row that are put in order; texts in use have a few."""
SHOWN_AS_VALUE = 2**16
"""Characters of a rejected row; a longer one is recorded as it stands, which takes less memory."""
FRAME = 40
"""Characters around a message in a record; they count, so that a record has a bounded length."""

RECORD = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation that can be trained on."""

    id: str
    messages: list[Message]
    """system, then user and assistant in turns."""
    category: str | None

    @property
    def first_prompt(self) -> str:
        return self.messages[1]["content"]

    def record(self) -> dict[str, Any]:
        """What stands in train.jsonl and val.jsonl."""
        category = {} if self.category is None else {"category": self.category}
        return {"id": self.id, **category, "messages": self.messages}


@dataclass
class Counts:
    """What became of the rows."""

    duplicates: int = 0
    train: int = 0
    val: int = 0
    rejected_by_reason: Counter[str] = field(default_factory=Counter)
    first_rejected: str = ""
    """Id and reason."""

    @property
    def rejected(self) -> int:
        return self.rejected_by_reason.total()

    @property
    def kept(self) -> int:
        return self.train + self.val

    @property
    def examples(self) -> int:
        return self.kept + self.rejected + self.duplicates


def to_example(row: Row, system_prompt: str) -> Example:
    """Raises RowError with the precise reason."""
    conversation = to_conversation(row.value)
    system = conversation.system
    if system is None or not system.strip():
        system = system_prompt
    _check_texts(conversation, system)
    category = conversation.category.strip() if conversation.category else ""
    messages = [{"role": "system", "content": system}, *conversation.turns]
    return Example(row.id, messages, category or None)


def prepare(
    params: PrepareParams,
    folder: str | Path,
    watch: Callable[[Iterable[Row]], Iterable[Row]] = iter,
) -> dict[str, Any]:
    """Write train, val and rejected .jsonl into `folder`; the report of reports/prepare.json.

    Memory: some 100 bytes an example. `watch` wraps the rows, to show progress. Raises InputError
    where the input is unreadable, too much of it is rejected, or a side stays empty; then train
    and val are not written, rejected is if the whole input could be read.
    """
    folder = Path(folder)
    counts, likeness = Counts(), _Likeness()
    with atomic_write(folder / "train.jsonl") as train, atomic_write(folder / "val.jsonl") as val:
        with atomic_write(folder / "rejected.jsonl") as rejected:
            seen: set[bytes] = set()
            side = _Side(params.seed, params.train_split)
            for row in watch(read_rows(params.ft_json_path)):
                try:
                    example = to_example(row, params.system_prompt)
                except RowError as error:
                    _reject(row, error, rejected, counts)
                    continue
                digest = conversation_digest(example.messages)
                if digest in seen:
                    counts.duplicates += 1
                    continue
                seen.add(digest)
                trains = side.trains(example.first_prompt)
                likeness.add(example.first_prompt, trains)
                counts.train += trains
                counts.val += not trains
                (train if trains else val).write(f"{RECORD(example.record())}\n".encode())
        _check_counts(counts, params, folder / "rejected.jsonl")
    return {
        "examples": counts.examples,
        "kept": counts.kept,
        "rejected": counts.rejected,
        "duplicates": counts.duplicates,
        "train": counts.train,
        "val": counts.val,
        "rejected_by_reason": dict(sorted(counts.rejected_by_reason.items())),
        "val_prompts_like_train": likeness.share(),
    }


def read_examples(path: str | Path, system_prompt: str = "") -> Iterator[Example]:
    """Examples of train.jsonl, val.jsonl or any file without faults, with their own id if given.

    Raises InputError at the first faulty row.
    """
    for row in read_rows(path):
        try:
            example = to_example(row, system_prompt)
        except RowError as error:
            raise InputError(f"{path}: {row.id}: {error}") from None
        given = row.value.get("id")
        yield Example(
            given if isinstance(given, str) else row.id, example.messages, example.category
        )


def normalised(text: str) -> str:
    """What two texts that read the same have in common."""
    return _compatible(text).casefold()


def conversation_digest(messages: list[Message]) -> bytes:
    """16 bytes, equal for conversations that differ in case, white space or Unicode form only."""
    # normalised text holds no line break, and roles stand in one order
    text = "\n".join(normalised(message["content"]) for message in messages)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def pattern(prompt: str) -> str:
    """The beginning of a prompt without its numbers and capitalised words."""
    text = DIGITS.sub("0", _compatible(prompt[:MAX_PATTERN]))
    if text.isascii():
        return CAPITALISED_ASCII.sub("A", text)
    return WORD.sub(lambda word: "A" if word[0][0].isupper() else word[0], text)


def _compatible(text: str) -> str:
    """The text in Unicode's form NFKC, white space as single spaces."""
    # split before: NFKC makes up to four words of one character
    text = " ".join(text.split())
    if text.isascii():
        return text
    run, its_samples = _long_runs()
    if its_samples.search(text[:: MAX_RUN // 2]):
        # normalize takes quadratic time to put a run in order: U+034F cuts it, as in
        # https://www.unicode.org/reports/tr15/#Stream_Safe_Text_Format
        text = run.sub("\\g<0>\u034f", text)
    return unicodedata.normalize("NFKC", text)


@cache
def _long_runs() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What matches MAX_RUN combining marks, and what matches in every (MAX_RUN / 2)th character
    of a text that holds so many."""
    marks = "".join(
        character
        for character in map(chr, range(0x300, 0x20000))  # beyond there are none
        if all(map(unicodedata.combining, unicodedata.normalize("NFKD", character)))
    )
    return re.compile(f"[{marks}]{{{MAX_RUN}}}"), re.compile(f"[{marks}]{{2}}")


class _Side:
    """Which side a first prompt is on: a keyed hash of it, compared with the split."""

    def __init__(self, seed: int, train_split: float) -> None:
        self.key = hashlib.blake2b(str(seed).encode(), digest_size=32).digest()
        self.limit = int(train_split * 2**64)

    def trains(self, prompt: str) -> bool:
        digest = hashlib.blake2b(normalised(prompt).encode(), digest_size=8, key=self.key).digest()
        return int.from_bytes(digest, "big") < self.limit


class _Likeness:
    """The share of validation examples whose first prompt follows a training prompt's pattern.

    An upper bound for "differs only in digits or names". 8 bytes an example.
    """

    def __init__(self) -> None:
        self.digests = {True: array("Q"), False: array("Q")}

    def add(self, prompt: str, trains: bool) -> None:
        digest = hashlib.blake2b(pattern(prompt).encode(), digest_size=8).digest()
        self.digests[trains].append(int.from_bytes(digest, "big"))

    def share(self) -> float:
        import numpy as np

        train, val = (np.array(self.digests[side], np.uint64) for side in (True, False))
        return round(float(np.isin(val, train).mean()), 6)


def _check_texts(conversation: Conversation, system: str) -> None:
    for index, message in enumerate(conversation.turns):
        if not message["content"].strip():
            raise RowError("empty text", f"the {_ordinal(index)} is empty")
    texts = [system, conversation.category or "", *(turn["content"] for turn in conversation.turns)]
    size = sum(len(text) + FRAME for text in texts)
    if size > MAX_CHARACTERS:
        raise RowError("too long", f"{size} characters, wanted at most {MAX_CHARACTERS}")
    for text in texts:
        if ("\0" in text or not text.isascii()) and (found := FORBIDDEN.search(text)):
            name = "NUL" if found[0] == "\0" else "a lone surrogate"
            raise RowError("forbidden character", f"{name} (U+{ord(found[0]):04X}) in the text")


def _ordinal(index: int) -> str:
    """What a turn is called: turn 1 has a prompt and a reply."""
    return f"{'reply' if index % 2 else 'prompt'} of turn {index // 2 + 1}"


def _reject(row: Row, error: RowError, file: BinaryIO, counts: Counts) -> None:
    counts.rejected_by_reason[error.reason] += 1
    counts.first_rejected = counts.first_rejected or f"{row.id}: {error}"
    record = {"id": row.id, "reason": str(error)}
    content = row.value if len(row.text) <= SHOWN_AS_VALUE else row.text
    try:
        line = RECORD({**record, "content": content}).encode()
    except (TypeError, ValueError, RecursionError):
        # what JSON cannot say again (twice the same key, NaN, half a surrogate): as it stood
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
        raise InputError(f"{params.ft_json_path}: no example left; the rejected are in {rejected}")
    for side, number in (("training", counts.train), ("validation", counts.val)):
        if not number:
            raise InputError(
                f"{params.ft_json_path}: no example on the {side} side of {counts.kept} "
                f"(train_split {params.train_split}): more distinct prompts, or another share"
            )
