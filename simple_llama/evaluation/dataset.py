"""The examples that the models are scored on: the validation split, or a held-out file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simple_llama.data.examples import read_examples
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.tokens import Tokens
from simple_llama.errors import InputError
from simple_llama.evaluation.held_out import HeldOut
from simple_llama.params.evaluate import EvaluateParams

TOKENIZER = "data/tokens/tokenizer"
TRAIN_TOKENS = "data/tokens/train.safetensors"
VAL_TOKENS = "data/tokens/val.safetensors"
CHOSE_BEST = "It also chose the best checkpoint, so it is not independent of the training."
"""Of the validation split."""


@dataclass(frozen=True, kw_only=True)
class EvalDataset:
    """E tokenized examples, and what the report says of them."""

    tokens: Tokens
    tokenizer: ChatTokenizer
    ids: Sequence[str]
    """(E,): where each stood in the data, as `simple-llama inspect --id` takes it."""
    categories: Sequence[str | None]
    """(E,)"""
    description: str
    """What was evaluated, in a sentence or two for the report."""

    @classmethod
    def read(cls, params: EvaluateParams) -> "EvalDataset":
        """Read what eval_json_path names, in the project of the current folder.

        Raises InputError where that file was trained on, or holds nothing that can be scored.
        """
        path = params.eval_json_path
        tokenizer = ChatTokenizer.from_folder(TOKENIZER)
        if Path(path).resolve() == Path("data/prepared/train.jsonl").resolve():
            raise InputError(f"eval_json_path: {path} was trained on, wanted held-out examples")
        if params.on_validation_split:
            examples = list(read_examples(path, params.system_prompt))
            tokens = Tokens.read(VAL_TOKENS)
            return cls(
                tokens=tokens,
                tokenizer=tokenizer,
                ids=[examples[row].id for row in tokens.rows],
                categories=[examples[row].category for row in tokens.rows],
                description=f"The validation split, {len(tokens):,} examples. {CHOSE_BEST}",
            )
        held_out = HeldOut.read(path, tokenizer, params)
        return cls(
            tokens=held_out.tokens,
            tokenizer=tokenizer,
            ids=held_out.ids,
            categories=held_out.categories,
            description=f"Held out: {path}, {len(held_out.tokens):,} examples; "
            f"{held_out.left_out:,} longer than max_seq_len, or excluded by their own flags, are "
            "left out. It chose no checkpoint; that it shares no example with the training data "
            "is not checked.",
        )
