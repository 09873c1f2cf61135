"""What the train stage reads of params.yaml."""

import re
from dataclasses import dataclass
from typing import Literal

from simple_llama.params.execution import ExecutionParams
from simple_llama.strict_yaml import require, shown

PROJECTIONS = (
    "down_proj",
    "gate_proj",
    "gate_up_proj",
    "k_proj",
    "o_proj",
    "q_proj",
    "qkv_proj",
    "up_proj",
    "v_proj",
)
"""What lora_targets may name: the matrices of a layer, some of them in one, qkv_proj and
gate_up_proj, in some models."""


@dataclass(frozen=True, kw_only=True)
class TrainParams(ExecutionParams):
    seed: int
    max_seq_len: int
    dropout: float
    epochs: int
    batch_size: int
    """Examples; times grad_accum_steps they make one optimizer step."""
    grad_accum_steps: int
    max_lr: float
    min_lr: float
    warmup_iterations: int
    """Optimizer steps."""
    lr_schedule: Literal["cosine", "linear", "constant"]
    beta1: float
    beta2: float
    weight_decay: float
    max_grad_norm: float
    """0 switches clipping off."""
    loss_spike: float
    """A loss above so many times the recent mean ends the training; 0: no loss does."""
    max_steps: int
    """Optimizer steps; 0: no limit."""
    max_train_examples: int
    """0: all."""
    eval_interval: int
    """Optimizer steps; 0: validate at epoch ends only."""
    eval_num_samples: int
    early_stopping_patience: int
    """Epochs; 0: off."""
    ckpt_epochs: int
    """Epochs; 0: keep only the best."""
    sample_prompts: int
    sample_max_tokens: int
    sample_temperature: float
    model_gen_multiplier: float
    dynamic_padding: bool
    packing: bool | Literal["auto"]
    """Whether a micro-batch is one row of examples without padding; auto: where it is faster."""
    enable_compilation: bool | Literal["auto"]
    """auto: on CUDA, where this training is long enough to win back the time that it takes."""
    cuda_graphs: bool
    """Whether all kernels of a packed micro-batch are launched at once."""
    activation_checkpointing: Literal["none", "blocks"]
    """What the backward pass computes again to save memory."""
    shard: Literal["none", "full"]
    """Whether each of several devices holds a part of the model only."""
    weights: Literal["fp32", "bf16"]
    """The type of matrices and their gradients where all weights are trained."""
    optimizer_state: Literal["fp32", "bf16", "8bit"]
    """The type of AdamW's two moments of each weight."""
    lora_rank: int
    """Of the adapters; 0: all weights are trained."""
    lora_alpha: float
    lora_dropout: float
    lora_targets: str
    lora_base: Literal["bf16", "nf4"]
    """What the frozen projections are held in: bf16 where that loses no digit and the device
    computes in it, or 4 bits."""

    @property
    def lora_projections(self) -> tuple[str, ...]:
        """The projections of a layer that have an adapter."""
        if self.lora_targets == "all-linear":
            return PROJECTIONS
        # in `-S lora_targets=...` a comma would mean several experiments
        return tuple(sorted({name for name in re.split(r"[+,\s]+", self.lora_targets) if name}))

    @property
    def is_sharded(self) -> bool:
        return self.shard == "full"

    @property
    def examples_per_step(self) -> int:
        """Examples of one full optimizer step."""
        return self.batch_size * self.grad_accum_steps

    @property
    def is_limited(self) -> bool:
        """Whether this is a part of a training only, as a smoke test is."""
        return self.max_steps > 0 or self.max_train_examples > 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("epochs", "batch_size", "grad_accum_steps", "eval_num_samples"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "1 or more")
        for key in (
            "warmup_iterations",
            "weight_decay",
            "max_grad_norm",
            "loss_spike",
            "max_steps",
            "max_train_examples",
            "eval_interval",
            "early_stopping_patience",
            "ckpt_epochs",
            "sample_prompts",
            "sample_temperature",
        ):
            require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")
        for key, fits in {
            "num_devices": self.num_devices == 1,
            "activation_checkpointing": self.activation_checkpointing == "none",
            "packing": self.packing is not False,
            "dynamic_padding": self.dynamic_padding,
        }.items():
            require(
                fits or not self.cuda_graphs,
                "cuda_graphs",
                self.cuda_graphs,
                f"false with {key}: {shown(getattr(self, key))}",
            )
        require(
            self.dynamic_padding or self.packing is not True,
            "packing",
            self.packing,
            "auto or false with dynamic_padding: false: that pads to max_seq_len, this not at all",
        )
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")
        require(self.max_seq_len >= 2, "max_seq_len", self.max_seq_len, "2 or more")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "0 to below 1")
        for key in ("beta1", "beta2"):
            require(0 <= getattr(self, key) < 1, key, getattr(self, key), "0 to below 1")
        require(self.max_lr > 0, "max_lr", self.max_lr, "above 0")
        require(
            0 <= self.min_lr <= self.max_lr, "min_lr", self.min_lr, f"0 to max_lr ({self.max_lr})"
        )
        require(
            self.sample_max_tokens >= 1, "sample_max_tokens", self.sample_max_tokens, "1 or more"
        )
        require(
            self.model_gen_multiplier >= 1,
            "model_gen_multiplier",
            self.model_gen_multiplier,
            "1 or more",
        )
        self._check_memory()
        self._check_lora()

    def _check_memory(self) -> None:
        """Other types than fp32 are for tensors that are not sharded, and for weights that are all
        trained under bf16 autocast."""
        for key in ("weights", "optimizer_state"):
            value = getattr(self, key)
            require(self.shard == "none" or value == "fp32", key, value, "fp32 with shard: full")
        require(
            self.lora_rank == 0 or self.weights == "fp32",
            "weights",
            self.weights,
            "fp32 with lora_rank: adapters are small, and their base is held in bf16 as it is",
        )
        require(
            self.precision != "fp32" or self.weights == "fp32",
            "weights",
            self.weights,
            "fp32 with precision: fp32",
        )

    def _check_lora(self) -> None:
        if self.lora_base == "nf4":
            for key, fits in {
                "lora_rank": self.lora_rank != 0,  # rounded weights cannot be trained
                "shard": self.shard == "none",
                "cuda_graphs": not self.cuda_graphs,
            }.items():
                value = shown(getattr(self, key))
                require(fits, "lora_base", self.lora_base, f"bf16 with {key}: {value}")
        require(self.lora_rank >= 0, "lora_rank", self.lora_rank, "0 or more")
        require(
            self.lora_rank == 0 or self.shard == "none",
            "lora_rank",
            self.lora_rank,
            "0 with shard: full: it spreads what is trained, and adapters are small",
        )
        require(self.lora_alpha > 0, "lora_alpha", self.lora_alpha, "above 0")
        require(0 <= self.lora_dropout < 1, "lora_dropout", self.lora_dropout, "0 to below 1")
        names = self.lora_projections
        require(
            bool(names) and set(names) <= set(PROJECTIONS),
            "lora_targets",
            self.lora_targets,
            f"all-linear, or some of {', '.join(PROJECTIONS)}",
        )
