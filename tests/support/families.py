"""What configs of several families share, and their models in transformers."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "pad_token_id": None,
}


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


LINEAR = {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0}


YARN = {
    "rope_type": "yarn",
    "rope_theta": 900.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}


GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 30}


PLAIN = {"rope_type": "default", "rope_theta": 1e6}


IDS = torch.randint(0, 97, (2, 120), generator=torch.Generator().manual_seed(1))


def their_logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.inference_mode():
        return model(ids).logits  # type: ignore[no-any-return]


def theirs_of(folder: Path) -> Any:
    """Read, not kept, because rounding a model rounds its rotary frequencies, which are no
    weights."""
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",  # the only one of its ways that caps scores everywhere
    )
