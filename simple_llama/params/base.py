"""Which pretrained checkpoint train starts from and evaluate compares with."""

from dataclasses import dataclass

from simple_llama.strict_yaml import require


@dataclass(frozen=True, kw_only=True)
class BaseParams:
    model_path: str

    def __post_init__(self) -> None:
        require(self.model_path != "", "model_path", self.model_path, "a path")
