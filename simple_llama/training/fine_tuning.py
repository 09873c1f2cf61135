"""What of a model is trained, kept and published: all weights, or low-rank adapters."""

import shutil
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from simple_llama.errors import InputError
from simple_llama.files import copy_folder
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import uses_bf16
from simple_llama.model.folder import load_model, save_model
from simple_llama.model.lora import (
    LoraConfig,
    add_adapters,
    keep_frozen_in_bf16,
    load_adapter,
    merge_adapters,
    save_adapter,
)
from simple_llama.model.quantisation import in_nf4
from simple_llama.model.weights import check_range
from simple_llama.params.train import TrainParams
from simple_llama.process import main_root
from simple_llama.training.resume import ResumeFolder

MODEL = Path("models/sft")
CHECKPOINTS = Path("models/checkpoints")
ADAPTER = Path("models/adapter")
"""Empty where all weights are trained."""


class FineTuning(Protocol):
    """What is trained of a model, and how it becomes the outs of train."""

    def prepare(self, model: Decoder, params: TrainParams) -> None:
        """Add what is trained, if it is added, and freeze the rest."""

    def save(self, model: Decoder, folder: Path) -> None:
        """Write what is trained, so that `publish` can read it."""

    def publish(self, kept: ResumeFolder, best_step: int, ids: Tensor) -> dict[str, str]:
        """Write models/: the best model, and those kept at epoch ends. Returns tags for the run,
        measured on ids (B, T)."""


def fine_tuning_method(params: TrainParams, base: str, tokenizer: Path) -> FineTuning:
    """LoRA where lora_rank is not 0."""
    return (
        LoraFineTuning(params, base, tokenizer) if params.lora_rank else FullFineTuning(tokenizer)
    )


def check_weights_type(params: TrainParams, device: str, *, half: bool) -> None:
    """Raises InputError where weights are to be held in bfloat16 and a kind of device does not
    compute in it. half: whether it does."""
    if params.weights == "bf16" and not half:
        raise InputError(
            f"weights: got bf16, and precision: auto is fp32 on this {device}, wanted "
            "weights: fp32, or precision: bf16"
        )


class FullFineTuning:
    """Full fine-tuning."""

    def __init__(self, tokenizer: Path) -> None:
        self.tokenizer = tokenizer

    def prepare(self, model: Decoder, params: TrainParams) -> None:
        """Raises InputError as check_weights_type does."""
        device = model.embed_tokens.weight.device
        check_weights_type(params, device.type, half=uses_bf16(device, params.precision))
        if params.weights == "bf16":
            for name, parameter in model.named_parameters():
                if parameter.ndim >= 2:  # norms and biases are small, and near one coarse
                    check_range(parameter.data, torch.bfloat16, name)
                    parameter.data = parameter.data.bfloat16()

    def save(self, model: Decoder, folder: Path) -> None:
        save_model(model, folder, self.tokenizer)

    def publish(self, kept: ResumeFolder, best_step: int, ids: Tensor) -> dict[str, str]:
        _empty(CHECKPOINTS, ADAPTER)
        copy_folder(kept.saved_best(best_step), MODEL)
        for epoch in kept.epoch_paths():
            copy_folder(epoch, CHECKPOINTS / epoch.name)
        return {}


class LoraFineTuning:
    """LoRA, or QLoRA: the base stays as it is, or is rounded to 4 bits. Published are the adapters
    merged into the original weights, in float32."""

    def __init__(self, params: TrainParams, base: str, tokenizer: Path) -> None:
        self.base, self.tokenizer = base, tokenizer
        self.lora = LoraConfig.of(params)

    def prepare(self, model: Decoder, params: TrainParams) -> None:
        if params.lora_base == "nf4":
            in_nf4(model)  # what load_model has left
        add_adapters(model, self.lora, params.seed)
        if uses_bf16(model.embed_tokens.weight.device, params.precision):
            keep_frozen_in_bf16(model)

    def save(self, model: Decoder, folder: Path) -> None:
        save_adapter(model, folder, self.lora, self.base)

    def publish(self, kept: ResumeFolder, best_step: int, ids: Tensor) -> dict[str, str]:
        _empty(CHECKPOINTS, ADAPTER)
        for epoch in kept.epoch_paths():
            self._save_merged(self._adapted(epoch), CHECKPOINTS / epoch.name)
        model = self._adapted(kept.saved_best(best_step))
        # peft looks for the base from wherever it is called
        save_adapter(model, ADAPTER, self.lora, str(persistent_path(self.base)))
        apart = _logits(model, ids)
        self._save_merged(model, MODEL)
        difference = (_logits(model, ids) - apart).abs().max().item()
        return {"lora.merged_logits_differ_by": f"{difference:.2g}"}

    def _adapted(self, adapter: Path) -> Decoder:
        """The original base in float32, whole in memory once, with a saved adapter."""
        model = load_model(self.base).eval()
        add_adapters(model, self.lora, seed=0)
        load_adapter(model, adapter)
        return model

    def _save_merged(self, model: Decoder, folder: Path) -> None:
        merge_adapters(model)
        save_model(model, folder, self.tokenizer)


@torch.inference_mode()
def _logits(model: Decoder, ids: Tensor) -> Tensor:
    return model.logits(model(ids))


def _empty(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)


def persistent_path(path: str | Path) -> Path:
    """An absolute path; where this is one of DVC's temporary copies, which are removed, that of the
    main repository."""
    here, root = Path.cwd().resolve(), main_root()
    if not here.is_relative_to(root / ".dvc/tmp/exps"):
        return here / path
    copy = next(folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir())
    return root / here.relative_to(copy) / path
