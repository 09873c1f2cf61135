"""What the tokenize stage reads of params.yaml."""

from dataclasses import dataclass
from typing import Literal

from simple_llama.strict_yaml import require


@dataclass(frozen=True, kw_only=True)
class TokenizeParams:
    tokenizer_path: str
    prompt_format: Literal[
        "auto", "template", "simple_llama", "chatml", "llama3", "zephyr", "alpaca"
    ]
    system_prompt: str
    max_seq_len: int
    """Longest example, in tokens."""
    max_dropped: float
    """Share of dropped examples above which tokenize stops."""
    supervise: Literal["last_reply", "all_replies"]

    def __post_init__(self) -> None:
        require(0 <= self.max_dropped <= 1, "max_dropped", self.max_dropped, "0 to 1")
        require(self.tokenizer_path != "", "tokenizer_path", self.tokenizer_path, "a path")
        require(self.max_seq_len >= 2, "max_seq_len", self.max_seq_len, "2 or more")
