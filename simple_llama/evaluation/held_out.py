"""Reading and tokenizing a file of conversations that took no part in training."""

from collections.abc import Sequence
from dataclasses import dataclass

from simple_llama.data.examples import read_examples
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.tokens import Tokens
from simple_llama.errors import InputError
from simple_llama.params.evaluate import EvaluateParams


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The examples of the file that have a reply to score and at most max_seq_len tokens."""

    tokens: Tokens
    ids: Sequence[str]
    categories: Sequence[str | None]
    left_out: int
    """Rows that are not among them: too long, or without a reply to score (their own flags may
    exclude it)."""

    @classmethod
    def read(cls, path: str, tokenizer: ChatTokenizer, params: EvaluateParams) -> "HeldOut":
        """Read the file at `path`.

        Raises InputError where a row is no conversation, where the prompt format refuses one, or
        where no row is left.
        """
        excluded: list[str] = []
        examples = list(read_examples(path, params.system_prompt, excluded))
        batch = tokenizer.encode_batch([one.messages for one in examples], params.supervise)
        for row, why in batch.refused.items():
            raise InputError(f"{path}: {examples[row].id}: refused by the prompt format: {why}")
        pairs = [
            (pair, examples[row])
            for pair, row in zip(batch.examples(), batch.rows.tolist(), strict=True)
            if 0 < len(pair[0]) <= params.max_seq_len
        ]
        if not pairs:
            flagged = f" ({len(excluded)} exclude themselves)" if excluded else ""
            raise InputError(
                f"{path}: none of its {len(examples) + len(excluded)} examples{flagged} has a "
                f"reply to score and at most max_seq_len ({params.max_seq_len}) tokens"
            )
        return cls(
            tokens=Tokens.from_examples([pair for pair, _ in pairs]),
            ids=[example.id for _, example in pairs],
            categories=[example.category for _, example in pairs],
            left_out=len(examples) + len(excluded) - len(pairs),
        )
