"""Reading a model from a folder in Hugging Face's layout or a SimpleLLaMA .pth; writing the
former."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
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
from simple_llama.model.config import ModelConfig
from simple_llama.model.config_json import config_json, read_config
from simple_llama.model.decoder import Decoder
from simple_llama.model.pth import read_pth
from simple_llama.model.quantisation import NF4Linear, in_nf4
from simple_llama.model.sharding import copy_full_tensor, full_tensor, shard
from simple_llama.model.token_rows import initialise_rows, untrained_ids
from simple_llama.model.weights import (
    DTYPES,
    QUANTISED,
    WEIGHTS,
    StoredTensor,
    check_range,
    in_bf16_if_exact,
    is_pth,
    lacks_weights,
    read_safetensors,
    weight_files,
    write_safetensors,
)

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
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
    config, tensors = _read_checkpoint(path)
    grown = replace(config, vocab_size=max(config.vocab_size, vocab_size))
    with torch.device("meta"):
        model = Decoder(grown, dropout=dropout, fused=fused)
    # before memory is taken: a wrong size in config.json would take any amount
    _check_tensors(path, tensors, model, config.vocab_size)
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


def check_weights(path: str | Path) -> None:
    """Compare the headers of a model's weights with its config; values are read only where two
    matrices may be tied.

    Raises InputError as load_model does.
    """
    config, tensors = _read_checkpoint(Path(path))
    with torch.device("meta"):
        model = Decoder(config)
    _check_tensors(Path(path), tensors, model, config.vocab_size)


def is_exact_in_bf16(path: str | Path) -> bool:
    """Whether all matrices of a model are stored in bfloat16, by the headers of its weights, or,
    where there are none, by its config."""
    path = Path(path)
    if is_pth(path):
        return False
    if lacks_weights(path):
        config = read_json(path / "config.json")
        return "bfloat16" in (config.get("dtype"), config.get("torch_dtype"))
    tensors = read_safetensors(weight_files(path))
    return all(tensor.dtype == "BF16" for tensor in tensors if len(tensor.shape) > 1)


def check_token_rows(
    path: str | Path, trained_vocab_size: int, control_ids: Mapping[str, int]
) -> None:
    """Check that a base was trained with all control tokens, for adapters train no embeddings.

    trained_vocab_size: of the tokenizer that it came with. Where there are no weights, only tokens
    that they would have no row for are found.

    Raises InputError naming tokens that it was not trained with.
    """
    path = Path(path)
    config = load_config(path)
    tensors: list[StoredTensor] = []
    if not lacks_weights(path):
        config, tensors = _read_checkpoint(path)
    rows = min(trained_vocab_size, config.vocab_size)
    missing = {one for one in control_ids.values() if one >= rows}
    for tensor in tensors:
        if tensor.parameter in (EMBEDDING, HEAD):
            missing |= untrained_ids(tensor.read(), trained_vocab_size, control_ids.values())
    if missing:
        names = ", ".join(name for name, one in control_ids.items() if one in missing)
        raise InputError(
            f"lora_rank: {path} has no trained embedding of {names}, and adapters learn none: "
            "wanted 0, or a prompt_format whose tokens it was trained with"
        )


def _read_checkpoint(path: Path) -> tuple[ModelConfig, list[StoredTensor]]:
    """The config, and the tensors that are parameters."""
    if is_pth(path):
        config, tensors = read_pth(path)
    else:
        tensors = read_safetensors(weight_files(path))
        config = load_config(path)
    # kept by older versions of transformers, and computed
    tensors = [one for one in tensors if not one.parameter.endswith("rotary_emb.inv_freq")]
    _check_layers(path, tensors, config)
    _check_dtypes(path, tensors)
    return _as_tied(config, tensors)


def _as_tied(
    config: ModelConfig, tensors: list[StoredTensor]
) -> tuple[ModelConfig, list[StoredTensor]]:
    """Treat a stored output projection of a tied model as `transformers` 5 does
    (PreTrainedModel.tie_weights): where it differs from the embedding the two are not tied; where
    no embedding is stored, it is the embedding too."""
    stored = {tensor.parameter: tensor for tensor in tensors}
    if not config.tie_word_embeddings or HEAD not in stored:
        return config, tensors
    head, others = stored[HEAD], [tensor for tensor in tensors if tensor.parameter != HEAD]
    if EMBEDDING not in stored:
        return config, [*others, replace(head, parameter=EMBEDDING)]
    if torch.equal(head.read().float(), stored[EMBEDDING].read().float()):
        return config, others
    return replace(config, tie_word_embeddings=False), tensors


def load_config(path: str | Path) -> ModelConfig:
    """The config of the model in a folder or .pth; no weights are read."""
    path = Path(path)
    return read_pth(path)[0] if is_pth(path) else read_config(path / "config.json")


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


def _check_layers(path: Path, tensors: Sequence[StoredTensor], config: ModelConfig) -> None:
    """Check their number before they are made: even on the meta device each takes time and
    memory."""
    layers = {
        match[1] for tensor in tensors if (match := re.match(r"layers\.(\d+)\.", tensor.parameter))
    }
    if tensors and not layers:
        raise InputError(
            f"{path}: tensor {tensors[0].name!r} is of no layer, and so are the others: wanted "
            "names like 'model.layers.0.mlp.up_proj.weight'"
        )
    if len(layers) != config.num_hidden_layers:
        raise InputError(
            f"{path}: its config has num_hidden_layers {config.num_hidden_layers}, "
            f"the weights are of {len(layers)} layers"
        )


def _check_dtypes(path: Path, tensors: Sequence[StoredTensor]) -> None:
    for tensor in tensors:
        if tensor.dtype not in DTYPES or tensor.name.endswith(QUANTISED):
            raise InputError(
                f"{path}: tensor {tensor.name!r} is of {tensor.dtype}: quantised weights are not "
                f"supported, wanted {', '.join(DTYPES)}"
            )


def _check_tensors(
    path: Path, tensors: Sequence[StoredTensor], model: Decoder, vocab_size: int
) -> None:
    """Each parameter needs a tensor of its shape, except for rows of ids beyond the stored
    vocab_size."""
    waiting = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    for name in waiting.keys() & {EMBEDDING, HEAD}:
        waiting[name][0] = vocab_size
    for tensor in tensors:
        if tensor.parameter not in waiting:
            raise InputError(
                f"{path}: tensor {tensor.name!r} has no place in a {model.config.model_type} model"
            )
        wanted = waiting.pop(tensor.parameter)
        if tensor.shape != wanted:
            raise InputError(
                f"{path}: tensor {tensor.name!r} has shape {tensor.shape}, "
                f"wanted {wanted} by its config"
            )
    if waiting:
        first = next(iter(waiting))
        raise InputError(f"{path}: {len(waiting)} tensors are missing, first {first!r}")


def check_fits(
    path: str | Path,
    vocab_size: int,
    max_seq_len: int,
    *,
    added_tokens: int = 0,
    without_weights: bool = False,
) -> ModelConfig:
    """Check that a base model fits a tokenizer of vocab_size ids, the last added_tokens of which
    this project added, and examples of up to max_seq_len tokens; returns its config.

    without_weights: its config.json is enough. Prints where load_model will grow the vocabulary for
    added tokens, and warns where positions go beyond those of pretraining. Raises InputError where
    there are no weights, other ids would have no embedding, or examples may be longer than can be
    computed.
    """
    if not (without_weights and lacks_weights(path)):
        weight_files(path)
    config = load_config(path)
    if config.vocab_size < vocab_size - added_tokens:
        raise InputError(
            f"{path}: its vocabulary has {config.vocab_size} entries, the tokenizer "
            f"{vocab_size}: wanted the tokenizer this checkpoint was trained with"
        )
    if config.vocab_size < vocab_size:
        print(
            f"note: the vocabulary of {path} grows from {config.vocab_size} to {vocab_size} "
            "entries for the tokens that were added",
            flush=True,
        )
    if config.max_supported_positions is not None and config.max_supported_positions < max_seq_len:
        raise InputError(
            f"{path}: beyond {config.max_supported_positions} tokens its longrope has other "
            f"frequencies, which are not supported: wanted max_seq_len ({max_seq_len}) up to that"
        )
    if config.max_position_embeddings < max_seq_len:
        print(
            f"warning: max_seq_len ({max_seq_len}) is above what {path} was pretrained for "
            f"({config.max_position_embeddings} tokens)",
            file=sys.stderr,
        )
    return config


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
