"""What the prepare stage reads of params.yaml."""

from dataclasses import dataclass
from typing import Literal

from simple_llama.strict_yaml import require


@dataclass(frozen=True, kw_only=True)
class PrepareParams:
    ft_json_path: str
    """A file or a folder of conversations."""
    data_format: Literal[
        "auto",
        "simple_llama",
        "alpaca",
        "sharegpt",
        "messages",
        "prompt_completion",
        "preference",
    ]
    """Of its rows; auto: detected file by file."""
    train_split: float
    """Share of distinct first prompts on the training side."""
    max_rejected: float
    """Share of rejected examples above which prepare stops."""
    system_prompt: str
    """What CUSTOM stands for."""
    seed: int

    def __post_init__(self) -> None:
        require(self.ft_json_path != "", "ft_json_path", self.ft_json_path, "a path")
        require(0 < self.train_split < 1, "train_split", self.train_split, "between 0 and 1")
        require(0 <= self.max_rejected <= 1, "max_rejected", self.max_rejected, "0 to 1")
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")
