"""What a training starts from: the tokens, the base model, and how it is fine-tuned."""

from dataclasses import dataclass
from pathlib import Path

import torch

from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.tokens import Tokens
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import uses_bf16
from simple_llama.model.folder import load_model
from simple_llama.model.quantisation import weight_count
from simple_llama.params.base import BaseParams
from simple_llama.params.reading import Params
from simple_llama.params.train import TrainParams
from simple_llama.training.distributed import Ranks
from simple_llama.training.estimate import Device
from simple_llama.training.fine_tuning import FineTuning, fine_tuning_method
from simple_llama.training.inputs import TOKENS_DEP
from simple_llama.training.loop import plan_training
from simple_llama.training.optimizer import trainable_parameters
from simple_llama.training.requirements import Requirements
from simple_llama.training.state import TrainingData

TOKENIZER = Path(TOKENS_DEP, "tokenizer")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """All of one training that does not change from step to step."""

    params: TrainParams
    tokenizer: ChatTokenizer
    data: TrainingData
    model: Decoder
    """With an embedding for each token; only what is trained wants gradients."""
    fine_tuning: FineTuning
    name: str
    """For a person: 'models/base (9.0M parameters, 0.40% of them trained)'."""


def set_up(all_params: Params, device: torch.device, ranks: Ranks) -> Setup:
    """Read tokens and base model, the model onto this device.

    Raises InputError where the tokens, the tokenizer or the params do not fit the base, before
    its weights are read where that can be told.
    """
    params = all_params.section(TrainParams)
    base = all_params.section(BaseParams).model_path
    tokenizer = ChatTokenizer.from_folder(TOKENIZER)
    data = TrainingData(
        train=Tokens.read(Path(TOKENS_DEP, "train.safetensors")),
        val=Tokens.read(Path(TOKENS_DEP, "val.safetensors")),
        pad_id=tokenizer.pad_id,
        stop_ids=tokenizer.for_model(base).stop_ids,
    )
    _check_plan(len(data.train), params, ranks)
    model = _base_model(base, tokenizer, data.train, params, device, ranks)
    fine_tuning = fine_tuning_method(params, base, TOKENIZER)
    fine_tuning.prepare(model, params)
    return Setup(
        params=params,
        tokenizer=tokenizer,
        data=data,
        model=model,
        fine_tuning=fine_tuning,
        name=_name(base, model),
    )


def _check_plan(examples: int, params: TrainParams, ranks: Ranks) -> None:
    steps, warmup = plan_training(examples, params).steps, params.warmup_iterations
    if ranks.is_main and steps < warmup:
        print(f"note: the warmup is shortened from {warmup} steps to the {steps} of this training")


def _base_model(
    base: str,
    tokenizer: ChatTokenizer,
    tokens: Tokens,
    params: TrainParams,
    device: torch.device,
    ranks: Ranks,
) -> Decoder:
    here = Device.real(device, params)
    wanted = Requirements.of(base, tokenizer, params, here)
    wanted.check(params)
    note = wanted.estimate(params, tokens, ranks.world_size).check()
    if note and ranks.is_main:
        print(note, flush=True)
    return load_model(
        base,
        device,
        dropout=params.dropout,
        fused=params.use_flash_attention,
        vocab_size=tokenizer.vocab_size,
        trained_vocab_size=tokenizer.base_vocab_size,
        control_ids=tokenizer.control_ids.values(),
        sharded=ranks.sharded,
        compact=params.lora_rank > 0 and uses_bf16(device, params.precision),
        nf4=params.lora_base == "nf4",
    )


def _name(base: str, model: Decoder) -> str:
    size = weight_count(model)
    share = sum(parameter.numel() for parameter in trainable_parameters(model).values()) / size
    of_them = f", {share:.2%} of them trained" if share < 1 else ""
    return f"{base} ({size / 1e6:.1f}M parameters{of_them})"
