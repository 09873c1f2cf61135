"""A base model as it is stored, in a folder of Hugging Face's layout or a SimpleLLaMA .pth: its
config and tensors, and whether they are what is wanted of them. Weights are read only where said.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from simple_llama.errors import InputError
from simple_llama.files import read_json
from simple_llama.model.config import ModelConfig
from simple_llama.model.config_json import read_config
from simple_llama.model.decoder import Decoder
from simple_llama.model.pth import read_pth
from simple_llama.model.token_rows import untrained_ids
from simple_llama.model.weights import (
    DTYPES,
    QUANTISED,
    StoredTensor,
    is_pth,
    lacks_weights,
    read_safetensors,
    weight_files,
)

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"


def load_config(path: str | Path) -> ModelConfig:
    """The config of the model in a folder or .pth; no weights are read."""
    path = Path(path)
    return read_pth(path)[0] if is_pth(path) else read_config(path / "config.json")


def check_weights(path: str | Path) -> None:
    """Compare the headers of a model's weights with its config; values are read only where two
    matrices may be tied.

    Raises InputError as load_model does.
    """
    config, tensors = read_checkpoint(Path(path))
    with torch.device("meta"):
        model = Decoder(config)
    check_tensors(Path(path), tensors, model, config.vocab_size)


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
        config, tensors = read_checkpoint(path)
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


def read_checkpoint(path: Path) -> tuple[ModelConfig, list[StoredTensor]]:
    """The config, and the tensors that are parameters.

    Raises InputError where there are none, or they are quantised or of another number of layers.
    """
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


def check_tensors(
    path: Path, tensors: Sequence[StoredTensor], model: Decoder, vocab_size: int
) -> None:
    """Raises InputError where a parameter has no tensor of its shape, or a tensor no parameter.

    Rows of ids from vocab_size on need none."""
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
