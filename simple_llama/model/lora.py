"""Low-rank adapters (LoRA, https://arxiv.org/abs/2106.09685): frozen projections W, each with a
trained product of two small matrices beside it. W may be held in 4 bits (QLoRA, see quantisation).

    W x + bias + alpha / r * B A dropout(x)        A (r, in), B (out, r)

On disk an adapter is a folder in PEFT's format, which loads there as it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from simple_llama.errors import InputError
from simple_llama.files import atomic_path, write_json
from simple_llama.model.config import ModelConfig
from simple_llama.model.decoder import Decoder
from simple_llama.model.quantisation import NF4Linear
from simple_llama.model.weights import ADAPTER_CONFIG, in_bf16_if_exact, write_safetensors
from simple_llama.params.train import PROJECTIONS, TrainParams

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model.model."
"""Before our parameters' names: PEFT's two wrappers around transformers' LlamaForCausalLM."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which adapters a model has."""

    rank: int
    alpha: float
    """The product is multiplied by alpha / rank."""
    dropout: float
    """Of the input of A."""
    targets: tuple[str, ...]
    """The names of the projections that have an adapter, in every layer."""

    @classmethod
    def of(cls, params: TrainParams) -> "LoraConfig":
        return cls(
            rank=params.lora_rank,
            alpha=params.lora_alpha,
            dropout=params.lora_dropout,
            targets=params.lora_projections,
        )


class LoraLinear(nn.Module):
    """A frozen projection and its adapter, of any number of features."""

    def __init__(self, base: nn.Linear | NF4Linear, lora: LoraConfig) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, lora.rank, bias=False)
        self.lora_B = nn.Linear(lora.rank, base.out_features, bias=False)
        self.dropout = lora.dropout
        self.scaling = lora.alpha / lora.rank

    def forward(self, x: Tensor) -> Tensor:
        dropped = F.dropout(x, self.dropout, self.training) if self.dropout else x
        change: Tensor = self.lora_B(self.scaling * self.lora_A(dropped))  # scaled while small
        return self.base_layer(x) + change  # type: ignore[no-any-return]

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """The projection itself, into whose weight the adapter's product has been added: it
        computes the same without dropout."""
        assert isinstance(self.base_layer, nn.Linear), "a rounded base is never merged"
        self.base_layer.weight += self.scaling * self.lora_B.weight @ self.lora_A.weight
        return self.base_layer


def check_adapters(
    config: ModelConfig, projections: Sequence[tuple[str, int, int]], lora: LoraConfig
) -> None:
    """Check that a model of these projections (name, rows, columns) can have the adapters.

    Raises InputError where the rank is more than that of a target, where the model has no such
    target, and for latent attention: nothing else could load its adapters.
    """
    if config.mla:
        raise InputError(f"lora_rank: got {lora.rank}, wanted 0 for a model with latent attention")
    names = {name for name, _, _ in projections}
    if lora.targets != PROJECTIONS and (missing := set(lora.targets) - names):
        raise InputError(
            f"lora_targets: got {', '.join(sorted(missing))}, wanted all-linear, or some of "
            f"{', '.join(sorted(names))}, which this model has"
        )
    most = min(min(sides) for name, *sides in projections if name in lora.targets)
    if lora.rank > most:
        raise InputError(f"lora_rank: got {lora.rank}, wanted at most {most}, a target's own rank")


def add_adapters(model: Decoder, lora: LoraConfig, seed: int) -> None:
    """Freeze the model and give its targets adapters that change nothing yet: A as PEFT draws it,
    uniform up to 1 / sqrt(in), B zero. Raises InputError as check_adapters does."""
    linears = list(_projections(model.layers))
    shapes = [(name, one.out_features, one.in_features) for _, name, one in linears]
    check_adapters(model.config, shapes, lora)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)  # of the CPU: the same on every device
    for parent, name, linear in linears:
        if name not in lora.targets:
            continue
        adapted = LoraLinear(linear, lora)
        nn.init.kaiming_uniform_(adapted.lora_A.weight, 5**0.5, generator=generator)
        nn.init.zeros_(adapted.lora_B.weight)
        setattr(parent, name, adapted.to(model.embed_tokens.weight.device))


def keep_frozen_in_bf16(model: Decoder) -> None:
    """Halve the memory of frozen projections whose every weight bfloat16 holds exactly, as it does
    where the checkpoint is of that type. Under bf16 autocast not one bit of a result changes:
    autocast would make the same copies."""
    for module in model.modules():
        if (
            isinstance(module, nn.Linear)
            and module.weight is not model.embed_tokens.weight
            and not module.weight.requires_grad
        ):
            module.weight.data = in_bf16_if_exact(module.weight.data)


def merge_adapters(model: Decoder) -> None:
    """Merge all adapters in place, one projection after the other."""
    for parent in list(model.layers.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLinear):
                setattr(parent, name, child.merge())


def _projections(layers: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear | NF4Linear]]:
    """The projections in these layers, each with the module that it is an attribute of."""
    for parent in list(layers.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear | NF4Linear):
                yield parent, name, child


def adapter_parameters(model: Decoder) -> dict[str, nn.Parameter]:
    """The adapters' matrices under PEFT's names."""
    return {
        PEFT_PREFIX + name: parameter
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }


def save_adapter(model: Decoder, folder: Path, lora: LoraConfig, base: str) -> None:
    """Write the adapter's folder whole or not at all; base: where PEFT finds the model for it."""
    tensors = {
        name: parameter.detach().float().cpu().contiguous()
        for name, parameter in adapter_parameters(model).items()
    }
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(
            {name.split(".")[-3] for name in tensors}  # of ...q_proj.lora_A.weight
        ),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        try:
            write_safetensors(tensors, temporary / ADAPTER_WEIGHTS)
        except SafetensorError as error:  # a full disk, mostly
            raise InputError(f"{folder}: the adapter could not be written: {error}") from None
        write_json(temporary / ADAPTER_CONFIG, config)


def load_adapter(model: Decoder, folder: Path) -> None:
    """Put a saved adapter's matrices into those of a model that has the same adapters."""
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            parameter.copy_(tensors[name])
