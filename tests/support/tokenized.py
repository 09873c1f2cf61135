"""Prepared splits, and the arrays of them."""

from pathlib import Path
from typing import Any

from simple_llama.data.encoding import open_tokenizer
from simple_llama.data.encoding import tokenize as tokenize_with
from simple_llama.params.tokenize import TokenizeParams

SYSTEM = "You are a helpful assistant."


def params(tokenizer: Path, **changes: Any) -> TokenizeParams:
    values: dict[str, Any] = {
        "tokenizer_path": str(tokenizer),
        "prompt_format": "auto",
        "system_prompt": SYSTEM,
        "max_seq_len": 1000,
        "max_dropped": 1.0,
        "supervise": "last_reply",
    }
    return TokenizeParams(**{**values, **changes})


def tokenize(params: TokenizeParams, prepared: Path, folder: Path) -> dict[str, Any]:
    return tokenize_with(params, open_tokenizer(params), prepared, folder)
