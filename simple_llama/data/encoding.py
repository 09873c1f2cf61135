"""Prepared examples → the token arrays of each split, in flat memory."""

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
from simple_llama.data.workers import Workers, cores
from simple_llama.errors import InputError
from simple_llama.files import atomic_write
from simple_llama.params import TokenizeParams

SPLITS = ("train", "val")
BLOCK_BYTES = 2**20
"""Of prepared conversations that are encoded at once: neither short nor long ones fill memory."""
MOST_PROCESSES = 16
"""More would wait for this one, which reads and writes: a twentieth of the work."""
WORTH = 2**25
"""Bytes of prepared conversations from which on processes, which take a second to start, save
time."""


@dataclass(frozen=True)
class Encoded:
    """The examples of a block that fit, as they stand in the file, and what the report says."""

    ids: bytes
    mask: bytes
    lengths: NDArray[np.int64]
    """(E,) tokens of each that fits."""
    rows: NDArray[np.int64]
    """(E,) in which of the block's lines they stand."""
    lines: int
    """Of the block."""
    dropped: list[tuple[str, int, str]]
    """Id and length of those that are too long, or 0 of those that train nothing; and why, of those
    that the prompt format refuses."""
    supervised: int
    """Tokens that are targets of the loss."""
    unknown: int
    """Tokens that stand for text the vocabulary lacks."""
    hidden: Counter[str]
    """What examples say and the prompt format does not show → how many do."""


def open_tokenizer(params: TokenizeParams) -> ChatTokenizer:
    """The tokenizer and format that the params name. Raises InputError where they do not fit."""
    return ChatTokenizer.from_path(
        params.tokenizer_path,
        prompt_format=params.prompt_format,
        system_prompt=params.system_prompt,
        model_max_length=params.max_seq_len,
    )


def prepared_bytes(folder: str | Path) -> int:
    """Of the splits that prepare wrote."""
    return sum((Path(folder) / f"{name}.jsonl").stat().st_size for name in SPLITS)


def tokenize(
    params: TokenizeParams,
    tokenizer: ChatTokenizer,
    prepared: str | Path,
    folder: str | Path,
    advance: Callable[[int], object] = lambda size: None,
) -> dict[str, Any]:
    """Write the token arrays, dropped.jsonl and the tokenizer into `folder`.

    The report of reports/tokenize.json. Flat memory but for 16 bytes an example; the tokens wait
    in unnamed temporary files in `folder`. `advance` is told how many bytes more were read, of
    `prepared_bytes`. Raises InputError where a split stays empty or more than max_dropped of all
    examples are too long.
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
    """One split on its way to its file."""

    folder: Path
    dtype_name: str
    starts: "array[int]" = field(default_factory=lambda: array("q", [0]))
    rows: "array[int]" = field(default_factory=lambda: array("q"))
    dropped: "array[int]" = field(default_factory=lambda: array("q"))
    """The length of each that is too long."""
    untrained: int = 0
    """Examples that train nothing."""
    refused: int = 0
    """By the prompt format."""
    hidden: Counter[str] = field(default_factory=Counter)
    first_refused: str = ""
    """Id and reason."""
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

    def add(self, encoded: Encoded) -> None:
        """What comes next in it."""
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
        """Raises InputError where nothing fits."""
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
) -> Iterator[Callable[[Iterable[Block]], Iterator[Encoded]]]:
    """What encodes blocks: on all cores, where so many bytes are worth it."""
    processes = min(cores(), MOST_PROCESSES) if size >= WORTH else 1
    if processes > 1:
        with Workers(partial(_encoder, params), processes) as workers:
            yield workers.in_order
    else:
        yield partial(map, partial(encode_block, params, tokenizer))


def _encoder(params: TokenizeParams) -> Callable[[Block], Encoded]:
    return partial(encode_block, params, open_tokenizer(params))


def encode_block(params: TokenizeParams, tokenizer: ChatTokenizer, block: Block) -> Encoded:
    """The examples of a block. Raises InputError at a faulty one."""
    examples = list(block_examples(block))
    batch = tokenizer.encode_batch([one.messages for one in examples], params.supervise)
    fits = (batch.lengths > 0) & (batch.lengths <= params.max_seq_len)
    ids, mask = (array[np.repeat(fits, batch.lengths)] for array in (batch.ids, batch.mask))
    return Encoded(
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
        hidden=Counter(key for one in examples for key in tokenizer.hidden(one.messages)),
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
    """The smallest."""
    highest = tokenizer.vocab_size - 1
    return next(name for name in FIELDS["ids"] if highest <= np.iinfo(DTYPES[name]).max)


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
