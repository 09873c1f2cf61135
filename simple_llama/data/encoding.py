"""Prepared examples → the token arrays of each split, in flat memory."""

import json
import math
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simple_llama.data.examples import Example, read_examples
from simple_llama.data.prompt import ChatTokenizer, EncodedBatch
from simple_llama.data.prompt_formats import Message
from simple_llama.data.tokens import DTYPES, FIELDS
from simple_llama.data.workers import Workers, cores
from simple_llama.errors import InputError
from simple_llama.files import atomic_write
from simple_llama.params import TokenizeParams

Messages = Sequence[Sequence[Message]]
EncodedBatches = Iterator[tuple[list[Example], EncodedBatch]]

SPLITS = ("train", "val")
BATCH_EXAMPLES = 1024
BATCH_CHARACTERS = 2**20
MOST_PROCESSES = 4
"""More would wait for this one, which reads and writes."""
WORTH = 2**25
"""Bytes of prepared conversations from which on processes, which take a second to start, save
time."""


def open_tokenizer(params: TokenizeParams) -> ChatTokenizer:
    """The tokenizer and format that the params name. Raises InputError where they do not fit."""
    return ChatTokenizer.from_path(
        params.tokenizer_path,
        prompt_format=params.prompt_format,
        system_prompt=params.system_prompt,
        model_max_length=params.max_seq_len,
    )


def tokenize(
    params: TokenizeParams,
    tokenizer: ChatTokenizer,
    prepared: str | Path,
    folder: str | Path,
    watch: Callable[[Iterable[Example]], Iterable[Example]] = iter,
) -> dict[str, Any]:
    """Write the token arrays, dropped.jsonl and the tokenizer into `folder`.

    The report of reports/tokenize.json. Flat memory but for 16 bytes an example; the tokens wait
    in unnamed temporary files in `folder`. Raises InputError where a split stays empty.
    """
    prepared, folder = Path(prepared), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    size = sum((prepared / f"{name}.jsonl").stat().st_size for name in SPLITS)
    with ExitStack() as stack:
        encoded = stack.enter_context(_encoding(params, tokenizer, size))
        dropped = stack.enter_context(atomic_write(folder / "dropped.jsonl"))
        splits = {
            name: stack.enter_context(_Split(prepared / f"{name}.jsonl", folder, tokenizer))
            for name in SPLITS
        }
        for name, split in splits.items():
            batches = _batches(watch(read_examples(split.source)))
            for example, length in split.add(encoded(batches), params.max_seq_len):
                record = {"id": example.id, "split": name, "length": length}
                dropped.write(f"{json.dumps(record, ensure_ascii=False)}\n".encode())
        for name, split in splits.items():
            split.write(folder / f"{name}.safetensors")
    tokenizer.save(folder / "tokenizer")
    return _report(splits["train"], splits["val"])


@dataclass
class _Split:
    """One split on its way to its file."""

    source: Path
    folder: Path
    tokenizer: ChatTokenizer
    starts: "array[int]" = field(default_factory=lambda: array("q", [0]))
    rows: "array[int]" = field(default_factory=lambda: array("q"))
    supervised: int = 0
    unknown: int = 0
    dropped: int = 0

    def __post_init__(self) -> None:
        self.dtype_name = _smallest_dtype(self.tokenizer.vocab_size)

    def __enter__(self) -> "_Split":
        self.ids = tempfile.TemporaryFile(dir=self.folder)
        self.mask = tempfile.TemporaryFile(dir=self.folder)
        return self

    def __exit__(self, *error: object) -> None:
        self.ids.close()
        self.mask.close()

    def add(self, encoded: EncodedBatches, max_seq_len: int) -> Iterator[tuple[Example, int]]:
        """Spill what fits; yields what is too long, with its length. InputError if all are."""
        row = 0
        shortest = math.inf
        for batch, tokens in encoded:
            fits = tokens.lengths <= max_seq_len
            for place in np.flatnonzero(~fits):
                length = int(tokens.lengths[place])
                self.dropped += 1
                shortest = min(shortest, length)
                yield batch[place], length
            self._spill(tokens, fits, row)
            row += len(batch)
        if not self.rows:
            raise InputError(
                f"{self.source}: every one of its {row} examples is longer than max_seq_len "
                f"({max_seq_len} tokens); the shortest has {shortest}"
            )

    def _spill(self, batch: EncodedBatch, fits: NDArray[np.bool_], row: int) -> None:
        """Those examples of a batch, whose first is this row, that fit."""
        taken = np.repeat(fits, batch.lengths)
        ids, mask = batch.ids[taken], batch.mask[taken]
        self.ids.write(ids.astype(DTYPES[self.dtype_name]).tobytes())
        self.mask.write(mask.tobytes())
        ends = self.starts[-1] + np.cumsum(batch.lengths[fits])
        self.starts.extend(ends.tolist())
        self.rows.extend((row + np.flatnonzero(fits)).tolist())
        self.supervised += int(np.count_nonzero(mask))
        if self.tokenizer.unk_id is not None:
            self.unknown += int(np.count_nonzero(ids == self.tokenizer.unk_id))

    def write(self, path: Path) -> None:
        """The safetensors file: header, then the fields in the order of FIELDS."""
        shapes = {
            "starts": ("I64", len(self.starts)),
            "rows": ("I64", len(self.rows)),
            "ids": (self.dtype_name, self.starts[-1]),
            "mask": ("U8", self.starts[-1]),
        }
        with atomic_write(path) as file:
            file.write(_header(shapes))
            for numbers in (self.starts, self.rows):
                file.write(np.asarray(numbers, DTYPES["I64"]).tobytes())
            for spilled in (self.ids, self.mask):
                spilled.seek(0)
                shutil.copyfileobj(spilled, file, 2**20)


@contextmanager
def _encoding(
    params: TokenizeParams, tokenizer: ChatTokenizer, size: int
) -> Iterator[Callable[[Iterable[list[Example]]], EncodedBatches]]:
    """What encodes batches: on all cores, where so many bytes are worth it."""
    processes = min(cores(), MOST_PROCESSES) if size >= WORTH else 1
    if processes > 1:
        with Workers(partial(_encoder, params), processes) as workers:
            yield partial(workers.in_order, needed=_messages)
    else:
        encode = partial(tokenizer.encode_batch, supervise=params.supervise)
        yield lambda batches: ((batch, encode(_messages(batch))) for batch in batches)


def _encoder(params: TokenizeParams) -> Callable[[Messages], EncodedBatch]:
    return partial(open_tokenizer(params).encode_batch, supervise=params.supervise)


def _messages(batch: list[Example]) -> Messages:
    return [example.messages for example in batch]


def _report(train: _Split, val: _Split) -> dict[str, Any]:
    lengths = np.sort(np.concatenate([np.diff(split.starts) for split in (train, val)]))
    tokens = int(lengths.sum())
    return {
        "train_examples": len(train.rows),
        "val_examples": len(val.rows),
        "dropped_too_long": train.dropped + val.dropped,
        "tokens": tokens,
        "supervised_tokens": train.supervised + val.supervised,
        "unknown_token_rate": round((train.unknown + val.unknown) / tokens, 6),
        "length_p50": int(lengths[(len(lengths) - 1) * 50 // 100]),
        "length_p95": int(lengths[(len(lengths) - 1) * 95 // 100]),
        "length_max": int(lengths[-1]),
    }


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """By number and by size, so that neither short nor long conversations fill the memory."""
    batch: list[Example] = []
    characters = 0
    for example in examples:
        batch.append(example)
        characters += sum(len(message["content"]) for message in example.messages)
        if len(batch) == BATCH_EXAMPLES or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _smallest_dtype(vocab_size: int) -> str:
    return next(name for name in FIELDS["ids"] if vocab_size - 1 <= np.iinfo(DTYPES[name]).max)


def _header(shapes: dict[str, tuple[str, int]]) -> bytes:
    """https://github.com/huggingface/safetensors#format"""
    entries = {}
    begin = 0
    for name, (dtype, length) in shapes.items():
        end = begin + length * DTYPES[dtype].itemsize
        entries[name] = {"dtype": dtype, "shape": [length], "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
