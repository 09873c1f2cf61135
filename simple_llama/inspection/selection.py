"""Which examples an inspection shows, and which rows are not trained on, and why."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simple_llama.data.examples import read_examples
from simple_llama.data.mixture import MIXTURE_FILE
from simple_llama.data.tokens import Tokens
from simple_llama.errors import InputError
from simple_llama.files import read_json
from simple_llama.inspection.cells import Cell, Speller, visible

if TYPE_CHECKING:
    from simple_llama.inspection.losses import TokenLosses

PREPARED = Path("data/prepared")
TOKENS = Path("data/tokens")
SPLITS = ("train", "val")
UNTRAINED_SHOWN = 3
"""Rejected rows and dropped examples that are named, of each kind."""


@dataclass(frozen=True, slots=True)
class ShownExample:
    """An example with its tokens, as it is trained on."""

    id: str
    split: str
    category: str | None
    cells: list[Cell]

    @property
    def tokens(self) -> int:
        return sum(len(cell.ids) for cell in self.cells)

    @property
    def targets(self) -> int:
        return sum(len(cell.ids) for cell in self.cells if cell.target)

    @property
    def use(self) -> str:
        """What becomes of the targets."""
        return "trained" if self.split == "train" else "scored"

    @property
    def loss(self) -> float | None:
        """Nats per supervised token; None where no model was asked."""
        costs = [cell.loss for cell in self.cells if cell.target and cell.loss is not None]
        return sum(costs) / self.targets if costs else None


@dataclass(frozen=True, slots=True)
class UntrainedRow:
    """A row or an example that is not trained on."""

    id: str
    why: str
    content: str
    """The rejected row as JSON; empty for a dropped example."""


@dataclass(frozen=True)
class Inspection:
    examples: list[ShownExample]
    of: dict[str, int]
    """Split → its examples."""
    counts: list[tuple[str, int]]
    """Label and number, from all rows to those trained on; an indented label is a part of the line
    above. Empty where one example was asked for."""
    prompt_format: str
    """The prompt format that the tokens were written in."""
    lost: list[UntrainedRow]
    """The first few rejected and dropped ones, or the one that was asked for by its id."""


def first_examples(split: str, number: int, losses: "TokenLosses | None" = None) -> Inspection:
    """Show the first examples of a split, with the losses of their tokens if given.

    Raises InputError.
    """
    if number < 1:
        raise InputError(f"-n: got {number}, wanted 1 or more")
    splits = _read_splits()
    shown = shown_examples(
        split, splits[split], range(min(number, len(splits[split]))), losses=losses
    )
    lost = [*islice(_rejected(), UNTRAINED_SHOWN), *islice(_dropped(), UNTRAINED_SHOWN)]
    return Inspection(shown, _sizes(splits), _counts(), _format(), lost)


def example_of_id(
    wanted: str, split: str | None, losses: "TokenLosses | None" = None
) -> Inspection:
    """Show one example of a split, or of any. Raises InputError where no file knows the id."""
    splits = _read_splits()
    shown: list[ShownExample] = []
    for name in [split] if split else SPLITS:
        line = _line_of(PREPARED / f"{name}.jsonl", wanted)
        if line is not None:
            first, end = np.searchsorted(splits[name].rows, [line, line + 1]).tolist()
            shown += shown_examples(name, splits[name], range(first, end), losses=losses)
    lost = [] if shown else [one for one in (*_rejected(), *_dropped()) if one.id == wanted]
    if not shown and not lost:
        known = visible(next(read_examples(PREPARED / "train.jsonl")).id)
        raise InputError(
            f"{wanted}: not in {split or 'train or val'}, nor rejected, nor too long. Duplicates "
            f"and what {MIXTURE_FILE} leaves out are only counted. Ids look like {known}"
        )
    return Inspection(shown, _sizes(splits), [], _format(), lost)


def _read_splits() -> dict[str, Tokens]:
    return {name: Tokens.read(TOKENS / f"{name}.safetensors") for name in SPLITS}


def _sizes(splits: dict[str, Tokens]) -> dict[str, int]:
    return {name: len(tokens) for name, tokens in splits.items()}


def shown_examples(
    split: str,
    tokens: Tokens,
    indices: range,
    prepared: Path = PREPARED,
    folder: Path = TOKENS,
    losses: "TokenLosses | None" = None,
) -> list[ShownExample]:
    """Read some examples of a split from the folders that prepare and tokenize wrote.

    Raises InputError where the two folders do not belong together.
    """
    path = prepared / f"{split}.jsonl"
    speller = Speller.from_file(folder / "tokenizer" / "tokenizer.json")
    lines = [int(tokens.rows[index]) for index in indices]
    wanted = set(lines)
    examples = islice(read_examples(path), max(wanted, default=-1) + 1)
    found = {line: example for line, example in enumerate(examples) if line in wanted}
    if len(found) != len(wanted):
        raise InputError(f"{folder}: not the tokens of {path}; run the pipeline again")
    shown = []
    for index, line in zip(indices, lines):
        example = found[line]
        span = slice(tokens.starts[index], tokens.starts[index + 1])
        ids, mask = tokens.ids[span].tolist(), tokens.mask[span].tolist()
        cells = speller.cells(ids, mask, losses(ids) if losses else None)
        shown.append(ShownExample(example.id, split, example.category, list(cells)))
    return shown


def _line_of(path: Path, wanted: str) -> int | None:
    """The line of a record with this id: it stands first, so no line is parsed."""
    start = f'{{"id": {json.dumps(wanted, ensure_ascii=False)}, '.encode(errors="replace")
    with open(path, "rb") as file:
        return next((n for n, line in enumerate(file) if line.startswith(start)), None)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Records that a stage wrote. Raises InputError."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict) or "id" not in record:
                raise InputError(f"{path}: line {number}: not a record; run the pipeline again")
            yield record


def _rejected() -> Iterator[UntrainedRow]:
    for record in _records(PREPARED / "rejected.jsonl"):
        content = json.dumps(record.get("content"), ensure_ascii=False)
        yield UntrainedRow(str(record["id"]), f"rejected: {record.get('reason')}", content)


def _dropped() -> Iterator[UntrainedRow]:
    for record in _records(TOKENS / "dropped.jsonl"):
        length = record.get("length")
        why = f"too long: {length} tokens, over max_seq_len" if length else "trains no reply"
        if "reason" in record:
            why = f"refused by the prompt format: {record['reason']}"
        yield UntrainedRow(str(record["id"]), f"{why} ({record.get('split')})", "")


def _format() -> str:
    return str(read_json(TOKENS / "tokenizer" / "tokenizer_config.json").get("prompt_format"))


def _counts() -> list[tuple[str, int]]:
    prepared, tokenized = read_json("reports/prepare.json"), read_json("reports/tokenize.json")
    counts = [("examples in the data", prepared["examples"]), ("rejected", prepared["rejected"])]
    counts += [(f"  {why}", times) for why, times in prepared["rejected_by_reason"].items()]
    counts.append(("duplicates", prepared["duplicates"]))
    by_weight = {"left out": prepared["left_out"], "repeated": prepared["repeated"]}
    counts += [(f"{what} by {MIXTURE_FILE}", times) for what, times in by_weight.items() if times]
    counts.append(("longer than max_seq_len", tokenized["dropped_too_long"]))
    rest = {
        "refused by the prompt format": tokenized.get("dropped_refused"),
        "train no reply": tokenized["dropped_untrained"],
        "excluded by their own flags": prepared["untrained"],
    }
    counts += [(why, times) for why, times in rest.items() if times]
    counts += [("train", tokenized["train_examples"]), ("val", tokenized["val_examples"])]
    return counts
