"""`simple-llama export`: copy a model to a folder outside the pipeline, for other tools."""

from pathlib import Path

import torch

from simple_llama.errors import InputError
from simple_llama.inference.portable_template import make_portable
from simple_llama.model.folder import load_model, save_model
from simple_llama.pipeline import check_outside_outs

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export(*, folder: str, model: str, dtype: str) -> str:
    """Write the model and its tokenizer, whole or not at all; return what to print.

    Raises InputError where the folder is not empty or is written by DVC, or there is no model.
    """
    target = Path(folder)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{folder}: exists already, wanted a new or empty folder")
    check_outside_outs(target)
    if not Path(model).exists():
        raise InputError(f"{model}: no such model; `dvc repro` makes models/sft")
    loaded = load_model(model)
    save_model(loaded, target, model, dtype=DTYPES[dtype], finish=make_portable)
    size = sum(parameter.numel() for parameter in loaded.parameters())
    return (
        f"{folder}: {model}, {size / 1e6:.1f}M parameters in {dtype}\n"
        f"as the next base: model_path: {folder} and tokenizer_path: {folder}/tokenizer.json"
    )
