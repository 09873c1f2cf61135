"""How baseline, train and evaluate compute: speed and memory, and the last digits of the result."""

import re
from dataclasses import dataclass
from typing import Literal

from simple_llama.strict_yaml import require

AUTO_TOKENS = 2048
"""What micro_batch_tokens: auto stands for without a GPU; more are no faster there."""


@dataclass(frozen=True, kw_only=True)
class ExecutionParams:
    device: str
    precision: Literal["auto", "bf16", "fp32"]
    micro_batch_tokens: int | Literal["auto"]
    """Tokens in one forward pass, padding included, at most (but at least one example); auto: on
    CUDA what memory allows, elsewhere AUTO_TOKENS."""
    use_flash_attention: bool
    num_devices: int | Literal["auto"]
    """Of this machine; auto: all its GPUs that `device` allows, or one CPU."""
    deterministic: bool
    """Use deterministic kernels only, and decide nothing by measuring."""

    @property
    def tokens_at_once(self) -> int:
        """micro_batch_tokens, as far as it is known without the device."""
        return AUTO_TOKENS if self.micro_batch_tokens == "auto" else self.micro_batch_tokens

    @property
    def is_sharded(self) -> bool:
        """Whether each of several devices holds a part of the model only."""
        return False

    def __post_init__(self) -> None:
        known = re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device)
        require(known is not None, "device", self.device, "auto, cpu, cuda, cuda:N or mps")
        if self.micro_batch_tokens != "auto":
            require(
                self.micro_batch_tokens >= 1,
                "micro_batch_tokens",
                self.micro_batch_tokens,
                "1 or more, or auto",
            )
        if self.num_devices != "auto":
            several = self.device in ("auto", "cpu", "cuda")
            require(
                self.num_devices == 1 or (several and self.num_devices > 1),
                "num_devices",
                self.num_devices,
                "1 or more, or auto" if several else f"1: device {self.device} is a single one",
            )
