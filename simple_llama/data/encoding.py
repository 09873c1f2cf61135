"""The tokenize stage: writes the token arrays of each split, in nearly constant memory."""

import json
import shutil
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simple_llama.data.examples import block_examples
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.rows import Block, read_blocks
from simple_llama.data.tokens import DTYPES, FIELDS
from simple_llama.data.workers import Workers, available_cores
from simple_llama.errors import InputError
from simple_llama.files import atomic_write
from simple_llama.params.tokenize import TokenizeParams

SPLITS = ("train", "val")
BLOCK_BYTES = 2**20
"""Size of the blocks of prepared conversations that are encoded at once. A limit in bytes bounds
memory for short and for long conversations alike."""
MAX_PROCESSES = 16
"""Most encoding processes. This process reads and writes, which is about 1/20 of the work, so it
cannot keep many more than this busy."""
MIN_PARALLEL_BYTES = 2**25
"""Size of the prepared conversations from which encoding uses several processes; for less, starting
them, which takes a second, costs more than it saves."""


@dataclass(frozen=True)
class EncodedBlock:
    """The E examples of a block that are not too long, and counts for the report."""

    ids: bytes
    """Token ids in the byte order and type of the file."""
    mask: bytes
    """Loss mask, one byte per token."""
    lengths: NDArray[np.int64]
    """(E,) number of tokens of each example."""
    rows: NDArray[np.int64]
    """(E,) line of the block of each example."""
    lines: int
    """Number of lines of the block."""
    dropped: list[tuple[str, int, str]]
    """(id, length, reason) of each dropped example. length is 0 if it has no target, reason is ""
    if the prompt format did not refuse it."""
    supervised: int
    """Number of targets of the loss."""
    unknown: int
    """Number of unknown tokens, which replace text that is not in the vocabulary."""
    hidden: Counter[str]
    """Key of messages that the prompt format does not write → number of examples with it."""


def open_tokenizer(params: TokenizeParams) -> ChatTokenizer:
    """The tokenizer and prompt format of the params. Raises InputError where they do not fit."""
    return ChatTokenizer.from_path(
        params.tokenizer_path,
        prompt_format=params.prompt_format,
        system_prompt=params.system_prompt,
        model_max_length=params.max_seq_len,
    )


def prepared_bytes(folder: str | Path) -> int:
    """Total size of the splits that prepare wrote."""
    return sum((Path(folder) / f"{name}.jsonl").stat().st_size for name in SPLITS)


def tokenize(
    params: TokenizeParams,
    tokenizer: ChatTokenizer,
    prepared: str | Path,
    folder: str | Path,
    advance: Callable[[int], object] = lambda size: None,
) -> dict[str, Any]:
    """Write the token arrays, dropped.jsonl and the tokenizer into `folder`.

    Returns the report. Memory grows by 16 bytes per example only; until all is known, tokens are
    kept in unnamed temporary files in `folder`. `advance` is called with the number of bytes read
    since its last call, which add up to `prepared_bytes`. Raises InputError where a split stays
    empty, or more than max_dropped of all examples are too long or refused.
    """
    prepared, folder = Path(prepared), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        encode = stack.enter_context(_encoding(params, tokenizer, prepared_bytes(prepared)))
        dropped = stack.enter_context(atomic_write(folder / "dropped.jsonl"))
        splits = {
            name: stack.enter_context(_Split(folder, _ids_dtype(tokenizer))) for name in SPLITS
        }
        for name, split in splits.items():
            source = prepared / f"{name}.jsonl"
            for encoded in encode(_read(source, advance)):
                split.add(encoded)
                for example_id, length, why in encoded.dropped:
                    record = {"id": example_id, "split": name, "length": length}
                    record |= {"reason": why} if why else {}
                    dropped.write(f"{json.dumps(record, ensure_ascii=False)}\n".encode())
            split.check(source, params.max_seq_len)
        report = _report(splits["train"], splits["val"])
        _check_dropped(
            params, report, next(filter(None, (one.first_refused for one in splits.values())), "")
        )
        for name, split in splits.items():
            split.write(folder / f"{name}.safetensors")
    tokenizer.save(folder / "tokenizer")
    return report


def _check_dropped(params: TokenizeParams, report: dict[str, Any], first_refused: str) -> None:
    dropped, refused = report["dropped_too_long"], report.get("dropped_refused", 0)
    examples = report["train_examples"] + report["val_examples"] + dropped + refused
    if refused > params.max_dropped * examples:
        raise InputError(
            f"the prompt format refuses {refused:,} of {examples:,} examples, max_dropped allows a "
            f"share of {params.max_dropped}; first {first_refused}"
        )
    if dropped > params.max_dropped * examples:
        raise InputError(
            f"{dropped:,} of {examples:,} examples are longer than max_seq_len "
            f"({params.max_seq_len} tokens), max_dropped allows a share of {params.max_dropped}: "
            f"max_seq_len {report['length_p99_all']} would keep 99% of them"
        )


def _read(source: Path, advance: Callable[[int], object]) -> Iterator[Block]:
    for block in read_blocks(source, BLOCK_BYTES):
        yield block
        advance(len(block.lines))


@dataclass
class _Split:
    """One split while it is encoded."""

    folder: Path
    dtype_name: str
    starts: "array[int]" = field(default_factory=lambda: array("q", [0]))
    rows: "array[int]" = field(default_factory=lambda: array("q"))
    dropped: "array[int]" = field(default_factory=lambda: array("q"))
    """The length of each example that is too long."""
    untrained: int = 0
    """Number of examples without targets."""
    refused: int = 0
    """Number of examples that the prompt format refused."""
    hidden: Counter[str] = field(default_factory=Counter)
    first_refused: str = ""
    """Its id and reason."""
    lines: int = 0
    supervised: int = 0
    unknown: int = 0

    def __enter__(self) -> "_Split":
        self.ids = tempfile.TemporaryFile(dir=self.folder)
        self.mask = tempfile.TemporaryFile(dir=self.folder)
        return self

    def __exit__(self, *error: object) -> None:
        self.ids.close()
        self.mask.close()

    def add(self, encoded: EncodedBlock) -> None:
        """Append a block."""
        self.ids.write(encoded.ids)
        self.mask.write(encoded.mask)
        self.starts.extend((self.starts[-1] + np.cumsum(encoded.lengths)).tolist())
        self.rows.extend((self.lines + encoded.rows).tolist())
        self.lines += encoded.lines
        for example_id, length, why in encoded.dropped:
            if why:
                self.refused += 1
                self.first_refused = self.first_refused or f"{example_id}: {why}"
            elif length:
                self.dropped.append(length)
            else:
                self.untrained += 1
        self.hidden += encoded.hidden
        self.supervised += encoded.supervised
        self.unknown += encoded.unknown

    def check(self, source: Path, max_seq_len: int) -> None:
        """Raises InputError where no example is left."""
        if not self.rows and self.first_refused:
            raise InputError(
                f"{source}: none of its {self.lines} examples is left, {self.refused} of them "
                f"refused by the prompt format; first {self.first_refused}"
            )
        if not self.rows and not self.dropped:
            raise InputError(f"{source}: none of its {self.lines} examples trains a reply")
        if not self.rows:
            raise InputError(
                f"{source}: every one of its {len(self.dropped)} examples is longer than "
                f"max_seq_len ({max_seq_len} tokens); the shortest has {min(self.dropped)}"
            )

    def write(self, path: Path) -> None:
        """Write the safetensors file: the header, then the arrays in the order of FIELDS."""
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
) -> Iterator[Callable[[Iterable[Block]], Iterator[EncodedBlock]]]:
    """A function that encodes blocks in order: on all cores if `size` bytes are enough for it."""
    processes = min(available_cores(), MAX_PROCESSES) if size >= MIN_PARALLEL_BYTES else 1
    if processes > 1:
        with Workers(partial(_encoder, params), processes) as workers:
            yield workers.in_order
    else:
        yield partial(map, partial(encode_block, params, tokenizer))


def _encoder(params: TokenizeParams) -> Callable[[Block], EncodedBlock]:
    return partial(encode_block, params, open_tokenizer(params))


def encode_block(params: TokenizeParams, tokenizer: ChatTokenizer, block: Block) -> EncodedBlock:
    """Encode the examples of a block. Raises InputError at a faulty one."""
    examples = list(block_examples(block))
    batch = tokenizer.encode_batch([one.messages for one in examples], params.supervise)
    fits = (batch.lengths > 0) & (batch.lengths <= params.max_seq_len)
    ids, mask = (array[np.repeat(fits, batch.lengths)] for array in (batch.ids, batch.mask))
    return EncodedBlock(
        ids=ids.astype(DTYPES[_ids_dtype(tokenizer)]).tobytes(),
        mask=mask.tobytes(),
        lengths=batch.lengths[fits],
        rows=batch.rows[fits],
        lines=len(examples),
        dropped=[
            (examples[row].id, length, batch.refused.get(row, ""))
            for row, length in zip(batch.rows[~fits].tolist(), batch.lengths[~fits].tolist())
        ],
        supervised=int(np.count_nonzero(mask)),
        hidden=Counter(key for one in examples for key in tokenizer.hidden_keys(one.messages)),
        unknown=0 if tokenizer.unk_id is None else int(np.count_nonzero(ids == tokenizer.unk_id)),
    )


def _report(train: _Split, val: _Split) -> dict[str, Any]:
    lengths = np.sort(np.concatenate([np.diff(split.starts) for split in (train, val)]))
    dropped = np.sort(np.concatenate([np.asarray(split.dropped) for split in (train, val)]))
    all_lengths = np.concatenate([lengths, dropped])  # the dropped are longer than all others
    tokens = int(lengths.sum())
    refused, hidden = train.refused + val.refused, train.hidden + val.hidden
    return {
        "train_examples": len(train.rows),
        "val_examples": len(val.rows),
        "dropped_too_long": len(dropped),
        "dropped_untrained": train.untrained + val.untrained,
        **({"dropped_refused": refused} if refused else {}),
        **({"not_shown": dict(sorted(hidden.items()))} if hidden else {}),
        "tokens": tokens,
        "supervised_tokens": train.supervised + val.supervised,
        "unknown_token_rate": round((train.unknown + val.unknown) / tokens, 6),
        "length_p50": int(lengths[(len(lengths) - 1) * 50 // 100]),
        "length_p95": int(lengths[(len(lengths) - 1) * 95 // 100]),
        "length_max": int(lengths[-1]),
        "length_p99_all": int(all_lengths[-1 - len(all_lengths) // 100]),
    }


def _ids_dtype(tokenizer: ChatTokenizer) -> str:
    """The smallest type that holds every id."""
    highest = tokenizer.vocab_size - 1
    return next(name for name in FIELDS["ids"] if highest <= np.iinfo(DTYPES[name]).max)


def _header(shapes: dict[str, tuple[str, int]]) -> bytes:
    """The header of a safetensors file: https://github.com/huggingface/safetensors#format"""
    entries = {}
    begin = 0
    for name, (dtype, length) in shapes.items():
        end = begin + length * DTYPES[dtype].itemsize
        entries[name] = {"dtype": dtype, "shape": [length], "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
