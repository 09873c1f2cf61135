"""A model as a folder in Hugging Face's Llama layout: config.json and safetensors.

Weights are never unpickled, a header's lengths are checked by safetensors, and no name in an
index may lead out of the folder.
"""

import json
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from simple_llama.errors import InputError
from simple_llama.files import atomic_path, read_json
from simple_llama.model.config import ModelConfig
from simple_llama.model.decoder import Decoder

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DTYPES = ("F64", "F32", "F16", "BF16")


def load_model(
    folder: str | Path,
    device: torch.device | str = "cpu",
    *,
    dropout: float = 0.0,
    fused: bool = True,
) -> Decoder:
    """The decoder in float32, its weights read tensor by tensor from the mapped file.

    Raises InputError naming what is missing, left over, of the wrong shape or not supported.
    """
    folder = Path(folder)
    files = weight_files(folder)
    config = load_config(folder)
    _check_layers(folder, files, config)
    with torch.device("meta"):
        model = Decoder(config, dropout=dropout, fused=fused)
    # before memory is taken: a wrong size in config.json would take any amount
    names = _check_tensors(folder, files, model)
    _take_memory(model, device)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for file, name in _tensors(files):
            if name in names:
                parameters[names[name]].copy_(file.get_tensor(name))
    return model


def _take_memory(model: Decoder, device: torch.device | str) -> None:
    """Put memory in the place of weightless parameters, and the one buffer on the device; what was
    tied stays tied.

    nn.Module.to_empty would do it but imports half of PyTorch's compiler for it: 1.2 seconds.
    """
    real: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in real:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                real[parameter] = nn.Parameter(empty)
            setattr(module, name, real[parameter])
    model.frequencies = model.frequencies.to(device)


def _check_layers(folder: Path, files: list[Path], config: ModelConfig) -> None:
    """Before the layers are made, be they weightless: each takes time and memory of its own."""
    layers = {
        match[1]
        for _, name in _tensors(files)
        if (match := re.match(r"(?:model\.)?layers\.(\d+)\.", name))
    }
    if len(layers) != config.num_hidden_layers:
        raise InputError(
            f"{folder}: config.json has num_hidden_layers {config.num_hidden_layers}, "
            f"the weights are of {len(layers)} layers"
        )


def _check_tensors(folder: Path, files: list[Path], model: Decoder) -> dict[str, str]:
    """Each tensor to load and its parameter; the two have one shape."""
    names: dict[str, str] = {}
    waiting = dict(model.named_parameters())
    for file, name in _tensors(files):
        key = name.removeprefix("model.")
        if key.endswith("rotary_emb.inv_freq") or (
            key == "lm_head.weight" and model.config.tie_word_embeddings
        ):
            continue
        if key not in waiting:
            raise InputError(f"{folder}: tensor {name!r} has no place in a Llama model")
        wanted, header = list(waiting.pop(key).shape), file.get_slice(name)
        if header.get_shape() != wanted:
            raise InputError(
                f"{folder}: tensor {name!r} has shape {header.get_shape()}, "
                f"wanted {wanted} by config.json"
            )
        if header.get_dtype() not in DTYPES:
            raise InputError(
                f"{folder}: tensor {name!r} is of {header.get_dtype()}, "
                f"wanted one of {', '.join(DTYPES)}"
            )
        names[name] = key
    if waiting:
        first = next(iter(waiting))
        raise InputError(f"{folder}: {len(waiting)} tensors are missing, first {first!r}")
    return names


def check_fits(folder: str | Path, vocab_size: int, max_seq_len: int) -> ModelConfig:
    """The config of a base model that a tokenizer of vocab_size ids and examples of up to
    max_seq_len tokens can use.

    Raises InputError where there are no weights or ids would have no embedding; warns where
    positions go beyond those of pretraining.
    """
    weight_files(folder)
    config = load_config(folder)
    if config.vocab_size < vocab_size:
        raise InputError(
            f"{folder}: its vocabulary has {config.vocab_size} entries, the tokenizer "
            f"{vocab_size}: wanted the tokenizer this checkpoint was trained with"
        )
    if config.max_position_embeddings < max_seq_len:
        warnings.warn(
            f"max_seq_len ({max_seq_len}) is above what {folder} was pretrained for "
            f"({config.max_position_embeddings} tokens)",
            stacklevel=2,
        )
    return config


def weight_files(folder: str | Path) -> list[Path]:
    """The safetensors files that hold a folder's weights: one, or the shards its index names."""
    folder = Path(folder)
    if not folder.is_dir():
        found = "not a folder" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {found}, wanted a model in Hugging Face's Llama layout")
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        others = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
        found = f" (found {others[0]}: pickled weights are not read)" if others else ""
        raise InputError(f"{folder}: no weights, wanted {WEIGHTS} or {INDEX}{found}")
    index = read_json(folder / INDEX)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise InputError(f"{folder / INDEX}: no 'weight_map' from tensors to files")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        if name in ("", ".", "..") or Path(name).name != name:
            raise InputError(f"{folder / INDEX}: shard {name!r} is not a file name")
        if not (folder / name).is_file():
            raise InputError(f"{folder}: shard {name} is missing")
    return [folder / name for name in names]


def _tensors(files: list[Path]) -> Iterator[tuple[Any, str]]:
    """Each opened file with the name of a tensor in it."""
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  (not a mapping)
                    yield file, name
        except SafetensorError as error:
            raise InputError(f"{path}: not a valid safetensors file: {error}") from None


def load_config(folder: str | Path) -> ModelConfig:
    """config.json as a ModelConfig.

    Raises InputError naming what this decoder does not compute: another architecture, scaled
    rotary positions, another activation, quantised weights.
    """
    path = Path(folder) / "config.json"
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: not a file")
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path}: got {type(config).__name__}, wanted an object")
    _refuse_unsupported(path, config)
    heads = _wanted(path, config, "num_attention_heads")
    width = _wanted(path, config, "hidden_size")
    if type(heads) is not int or type(width) is not int or heads < 1:
        raise InputError(f"{path}: num_attention_heads and hidden_size must be positive integers")
    try:
        return ModelConfig(
            vocab_size=_wanted(path, config, "vocab_size"),
            hidden_size=width,
            intermediate_size=_wanted(path, config, "intermediate_size"),
            num_hidden_layers=_wanted(path, config, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or width // heads,
            max_position_embeddings=config.get("max_position_embeddings", 2048),
            rms_norm_eps=config.get("rms_norm_eps", 1e-6),
            rope_theta=_rope(config).get("rope_theta", 10000.0),
            tie_word_embeddings=config.get("tie_word_embeddings") or False,
            attention_bias=config.get("attention_bias") or False,
            mlp_bias=config.get("mlp_bias") or False,
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _wanted(path: Path, config: dict[str, Any], key: str) -> Any:
    if key not in config:
        raise InputError(f"{path}: missing {key!r}")
    return config[key]


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings from either place: transformers 5 nests them, before they were flat."""
    nested = config.get("rope_parameters") or config.get("rope_scaling") or {}
    settings = dict(nested) if isinstance(nested, dict) else {}
    if config.get("rope_theta") is not None:
        settings.setdefault("rope_theta", config["rope_theta"])
    return settings


def _refuse_unsupported(path: Path, config: dict[str, Any]) -> None:
    rope_type = _rope(config).get("rope_type", _rope(config).get("type", "default"))
    for key, got, supported in (
        ("model_type", config.get("model_type"), "llama"),
        ("hidden_act", config.get("hidden_act", "silu"), "silu"),
        ("rope type", rope_type, "default"),
        ("quantization_config", config.get("quantization_config"), None),
    ):
        if got != supported:
            raise InputError(f"{path}: {key} {got!r} is not supported, wanted {supported!r}")


def save_model(model: Decoder, folder: str | Path, tokenizer: str | Path | None = None) -> None:
    """Write the folder whole or not at all: weights in float32, config, and the files of the
    folder `tokenizer` beside them."""
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        try:
            save_file(_state(model), temporary / WEIGHTS, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk, mostly
            raise InputError(f"{folder}: the weights could not be written: {error}") from None
        (temporary / WEIGHTS).chmod(0o644)  # safetensors leaves it to its owner alone
        generation: dict[str, Any] = {}
        if tokenizer is not None:
            for path in sorted(Path(tokenizer).iterdir()):
                shutil.copyfile(path, temporary / path.name)
            generation = _special_ids(Path(tokenizer))
        _write(temporary / "config.json", _config_json(model.config) | generation)
        _write(temporary / "generation_config.json", generation)


def _state(model: Decoder) -> dict[str, Tensor]:
    """The weights under their Hugging Face names; a tied output projection is left out."""
    state = {}
    for name, parameter in model.named_parameters():  # names a shared tensor once
        full = name if name.startswith("lm_head.") else f"model.{name}"
        state[full] = parameter.detach().float().cpu().contiguous()
    return state


def _config_json(config: ModelConfig) -> dict[str, Any]:
    # rope_theta stands flat and nested: readers before and since transformers 5 find it
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        **{name: getattr(config, name) for name in config.__dataclass_fields__},
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def _special_ids(tokenizer: Path) -> dict[str, int]:
    """eos and pad ids, which generation needs, of a tokenizer folder."""
    settings = read_json(tokenizer / "tokenizer_config.json")
    added = read_json(tokenizer / "tokenizer.json")["added_tokens"]
    ids = {token["content"]: token["id"] for token in added}
    return {f"{kind}_token_id": ids[settings[f"{kind}_token"]] for kind in ("eos", "pad")}


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
