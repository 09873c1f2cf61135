"""Reading a model from a folder in Hugging Face's layout or a SimpleLLaMA .pth; writing the
former."""

import json
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from simple_llama.data.generation_config import (
    GENERATION_CONFIG_FILE,
    as_eos_token_id,
    read_eos_token_ids,
)
from simple_llama.data.tokenizer_folder import content, read_settings
from simple_llama.errors import InputError
from simple_llama.files import atomic_path, read_json
from simple_llama.model.checkpoint import EMBEDDING, HEAD, check_tensors, read_checkpoint
from simple_llama.model.config_json import config_json
from simple_llama.model.decoder import Decoder
from simple_llama.model.quantisation import NF4Linear, in_nf4
from simple_llama.model.sharding import copy_full_tensor, full_tensor, shard
from simple_llama.model.token_rows import initialise_rows
from simple_llama.model.weights import (
    WEIGHTS,
    check_range,
    in_bf16_if_exact,
    write_safetensors,
)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
)


def load_model(
    path: str | Path,
    device: torch.device | str = "cpu",
    *,
    dropout: float = 0.0,
    fused: bool = True,
    vocab_size: int = 0,
    trained_vocab_size: int | None = None,
    control_ids: Collection[int] = (),
    sharded: bool = False,
    compact: bool = False,
    nf4: bool = False,
) -> Decoder:
    """The decoder in float32, its weights read one tensor after the other.

    sharded: all ranks call this, and each keeps its part of each parameter.
    compact: projections, an untied head's too, that bfloat16 holds exactly are held in it.
    nf4: those of the layers are rounded to 4 bits instead: see quantisation.NF4Linear. Either way
    one of them at a time is in float32.
    vocab_size: ids it must have an embedding for; trained_vocab_size: those of them that the
    weights were trained with (None: as many as are stored). Rows that were never trained become
    the mean of the others: see token_rows.initialise_rows.

    Raises InputError naming what is missing, left over, of the wrong shape, no number or not
    supported.
    """
    path = Path(path)
    config, tensors = read_checkpoint(path)
    grown = replace(config, vocab_size=max(config.vocab_size, vocab_size))
    with torch.device("meta"):
        model = Decoder(grown, dropout=dropout, fused=fused)
    # before memory is taken: a wrong size in config.json would take any amount
    check_tensors(path, tensors, model, config.vocab_size)
    if nf4:
        in_nf4(model, empty=True)
    waiting = _projections(model) if nf4 or compact else {}
    _take_memory(model, device, waiting.values(), sharded=sharded)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for tensor in tensors:
            stored = tensor.read()
            check_range(stored, torch.float32, f"{path}: tensor {tensor.name!r}")
            if tensor.parameter in (EMBEDDING, HEAD):
                trained = (
                    len(stored)
                    if trained_vocab_size is None
                    else min(trained_vocab_size, len(stored))
                )
                stored = initialise_rows(stored, trained, max(trained, vocab_size), control_ids)
            module = waiting.get(tensor.parameter)
            if isinstance(module, NF4Linear):
                module.quantise(stored.to(device))
            elif module is not None:
                held = in_bf16_if_exact(stored) if compact else stored.float()
                # a copy: what was read of a file keeps it mapped
                module.weight = nn.Parameter(held.to(device, copy=True))
            else:
                copy_full_tensor(parameters[tensor.parameter], stored)
    return model


def _projections(model: Decoder) -> dict[str, nn.Linear | NF4Linear]:
    """Those that take no memory before their weights come, by the name of their weight."""
    return {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | NF4Linear)
        and getattr(module, "weight", None) is not model.embed_tokens.weight
    }


def _take_memory(
    model: Decoder,
    device: torch.device | str,
    without: Collection[nn.Module],
    *,
    sharded: bool,
) -> None:
    """Give parameters on the meta device memory on this one, and move the buffers; tied parameters
    stay tied. Modules `without` get none for their weight.

    nn.Module.to_empty would do it but imports half of PyTorch's compiler for it: 1.2 seconds.
    """
    buffers = {name: buffer.to(device) for name, buffer in model.named_buffers()}
    if sharded:
        shard(model, device)
        model.to_empty(device=device)
    real: dict[nn.Parameter, nn.Parameter] = {}
    for module in () if sharded else model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "weight" and module in without:
                continue
            if parameter not in real:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                real[parameter] = nn.Parameter(empty)
            setattr(module, name, real[parameter])
    for name, buffer in buffers.items():
        setattr(model, name, buffer)


def save_model(
    model: Decoder,
    folder: str | Path,
    tokenizer: str | Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Write the folder whole or not at all: weights, config, and the tokenizer files of the folder
    `tokenizer` beside them; `finish` may change them before the folder gets its name. The
    parameters of a sharded model are gathered one by one, for which the other ranks call
    gather_full_tensors.

    Raises InputError where the dtype cannot hold a weight, or the disk refuses.
    """
    state = _converted(_state(model), dtype)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        try:
            write_safetensors(state, temporary / WEIGHTS)
        except SafetensorError as error:  # a full disk, mostly
            raise InputError(f"{folder}: the weights could not be written: {error}") from None
        generation: dict[str, Any] = {}
        if tokenizer is not None:
            for name in TOKENIZER_FILES:
                if (Path(tokenizer) / name).is_file():
                    shutil.copyfile(Path(tokenizer) / name, temporary / name)
            generation = _special_ids(Path(tokenizer))
        kind = str(dtype).removeprefix("torch.")
        types = {"dtype": kind, "torch_dtype": kind}
        _write(temporary / "config.json", config_json(model.config) | types | generation)
        _write(temporary / GENERATION_CONFIG_FILE, generation)
        if finish is not None:
            finish(temporary)


def _state(model: Decoder) -> dict[str, Tensor]:
    """The weights under their Hugging Face names; a tied output projection is left out."""
    state = {}
    for name, parameter in model.named_parameters():  # names a shared tensor once
        full = name if name.startswith("lm_head.") else f"model.{name}"
        state[full] = full_tensor(parameter).float().cpu().contiguous()
    return state


def _converted(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Raises InputError naming a tensor that the dtype cannot hold."""
    for name, weight in state.items():
        check_range(weight, dtype, f"tensor {name!r}")
    return {name: weight.to(dtype) for name, weight in state.items()}


def _special_ids(tokenizer: Path) -> dict[str, int | list[int]]:
    """The bos, eos and pad ids that a tokenizer folder has, for generation; the eos ids of its
    generation_config.json are among them."""
    settings = read_settings(tokenizer)
    added = read_json(tokenizer / "tokenizer.json")["added_tokens"]
    ids = {token["content"]: token["id"] for token in added}
    found: dict[str, int | list[int]] = {}
    for kind in ("bos", "eos", "pad"):
        name = content(settings.get(f"{kind}_token"))
        if name in ids:
            found[f"{kind}_token_id"] = ids[name]
    trained = [ids[name]] if (name := content(settings.get("eos_token"))) in ids else []
    if ends := list(dict.fromkeys([*trained, *read_eos_token_ids(tokenizer)])):
        found["eos_token_id"] = as_eos_token_id(ends)
    return found


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
