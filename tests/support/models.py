"""Small decoders with random weights."""

import json
from pathlib import Path

import torch
from torch import Tensor

from simple_llama.model.config import ModelConfig
from simple_llama.model.decoder import Decoder
from simple_llama.model.families import FAMILIES
from simple_llama.model.folder import save_model

STOP = 3


def tiny_config(**changes: object) -> ModelConfig:
    values: dict[str, object] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    }
    fixed = FAMILIES[str(changes.get("model_type", "llama"))].fixed
    return ModelConfig(**{**values, **fixed, **changes})


def random_model(**changes: object) -> Decoder:
    """Weights far from the initialisation's symmetry, so that every part shows in the logits."""
    model = Decoder(tiny_config(**changes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def logits_of(model: Decoder, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        return model.logits(model(ids))


def greedy_without_cache(model: Decoder, prompt: list[int], steps: int) -> list[int]:
    ids = list(prompt)
    for _ in range(steps):
        token = int(logits_of(model, torch.tensor([ids]))[0, -1].argmax())
        if token == STOP:
            break
        ids.append(token)
    return ids[len(prompt) :]


def damaged(tmp_path: Path) -> Path:
    save_model(random_model(), tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
