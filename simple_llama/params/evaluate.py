"""What the stages baseline and evaluate read of params.yaml."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from simple_llama.params.execution import ExecutionParams
from simple_llama.strict_yaml import require

VALIDATION_SPLIT = "data/prepared/val.jsonl"
"""The eval_json_path that stands for the validation split, as tokenize left it."""


def is_validation_split(path: str) -> bool:
    return Path(path).resolve() == Path(VALIDATION_SPLIT).resolve()


@dataclass(frozen=True, kw_only=True)
class EvaluateParams(ExecutionParams):
    eval_json_path: str
    """The validation split, or a held-out file of conversations."""
    exact_match_max_tokens: int
    """Exact match is scored where the reference reply has at most so many tokens."""
    system_prompt: str
    max_seq_len: int
    supervise: Literal["last_reply", "all_replies"]

    @property
    def on_validation_split(self) -> bool:
        """Whether the validation split is scored, not a held-out file."""
        return is_validation_split(self.eval_json_path)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.eval_json_path != "", "eval_json_path", self.eval_json_path, "a path")
        require(
            self.exact_match_max_tokens >= 1,
            "exact_match_max_tokens",
            self.exact_match_max_tokens,
            "1 or more",
        )
