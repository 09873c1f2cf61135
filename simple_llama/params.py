"""params.yaml: a strict, flat YAML file read into one frozen dataclass per owner.

There are no defaults here: values live in params.yaml alone. Every reader checks the whole file,
because DVC accepts an unknown `-S +key=1` silently and then runs nothing that would notice.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from simple_llama.errors import InputError
from simple_llama.strict_yaml import check_type, did_you_mean, read_mapping, shown, type_name

Section = TypeVar("Section")

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
AUTO_TOKENS = 2048
"""What micro_batch_tokens: auto stands for without a GPU; more are no faster there."""
VALIDATION_SPLIT = "data/prepared/val.jsonl"
"""The eval_json_path that stands for the validation split, as tokenize left it."""


def is_validation_split(path: str) -> bool:
    return Path(path).resolve() == Path(VALIDATION_SPLIT).resolve()


def _require(holds: bool, key: str, got: object, wanted: str) -> None:
    if not holds:
        raise InputError(f"{key}: got {shown(got)}, wanted {wanted}")


@dataclass(frozen=True, kw_only=True)
class PrepareParams:
    """What the prepare stage reads."""

    ft_json_path: str
    """A file or a folder of conversations."""
    data_format: Literal[
        "auto",
        "simple_llama",
        "alpaca",
        "sharegpt",
        "messages",
        "prompt_completion",
        "preference",
    ]
    """Of its rows; auto: detected file by file."""
    train_split: float
    """Share of distinct first prompts on the training side."""
    max_rejected: float
    """Share of rejected examples above which prepare stops."""
    system_prompt: str
    """What CUSTOM stands for."""
    seed: int

    def __post_init__(self) -> None:
        _require(self.ft_json_path != "", "ft_json_path", self.ft_json_path, "a path")
        _require(0 < self.train_split < 1, "train_split", self.train_split, "between 0 and 1")
        _require(0 <= self.max_rejected <= 1, "max_rejected", self.max_rejected, "0 to 1")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")


@dataclass(frozen=True, kw_only=True)
class TokenizeParams:
    """What the tokenize stage reads."""

    tokenizer_path: str
    prompt_format: Literal[
        "auto", "template", "simple_llama", "chatml", "llama3", "zephyr", "alpaca"
    ]
    system_prompt: str
    max_seq_len: int
    """Longest example, in tokens."""
    max_dropped: float
    """Share of dropped examples above which tokenize stops."""
    supervise: Literal["last_reply", "all_replies"]

    def __post_init__(self) -> None:
        _require(0 <= self.max_dropped <= 1, "max_dropped", self.max_dropped, "0 to 1")
        _require(self.tokenizer_path != "", "tokenizer_path", self.tokenizer_path, "a path")
        _require(self.max_seq_len >= 2, "max_seq_len", self.max_seq_len, "2 or more")


@dataclass(frozen=True, kw_only=True)
class ExecutionParams:
    """How train and evaluate compute: speed and memory, and the last digits of the result."""

    device: str
    precision: Literal["auto", "bf16", "fp32"]
    micro_batch_tokens: int | Literal["auto"]
    """Tokens in one forward pass, padding included, at most (but at least one example); auto: on
    CUDA what memory allows, elsewhere AUTO_TOKENS."""
    use_flash_attention: bool
    num_devices: int | Literal["auto"]
    """Of this machine; auto: all its GPUs that `device` allows, or one CPU."""
    deterministic: bool
    """Use deterministic kernels only, and decide nothing by measuring."""

    @property
    def tokens_at_once(self) -> int:
        """micro_batch_tokens, as far as it is known without the device."""
        return AUTO_TOKENS if self.micro_batch_tokens == "auto" else self.micro_batch_tokens

    @property
    def is_sharded(self) -> bool:
        """Whether each of several devices holds a part of the model only."""
        return False

    def __post_init__(self) -> None:
        known = re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device)
        _require(known is not None, "device", self.device, "auto, cpu, cuda, cuda:N or mps")
        if self.micro_batch_tokens != "auto":
            _require(
                self.micro_batch_tokens >= 1,
                "micro_batch_tokens",
                self.micro_batch_tokens,
                "1 or more, or auto",
            )
        if self.num_devices != "auto":
            several = self.device in ("auto", "cpu", "cuda")
            _require(
                self.num_devices == 1 or (several and self.num_devices > 1),
                "num_devices",
                self.num_devices,
                "1 or more, or auto" if several else f"1: device {self.device} is a single one",
            )


@dataclass(frozen=True, kw_only=True)
class TrainParams(ExecutionParams):
    """What the training loop reads."""

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
            _require(getattr(self, key) >= 1, key, getattr(self, key), "1 or more")
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
            _require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")
        for key, fits in {
            "num_devices": self.num_devices == 1,
            "activation_checkpointing": self.activation_checkpointing == "none",
            "packing": self.packing is not False,
            "dynamic_padding": self.dynamic_padding,
        }.items():
            _require(
                fits or not self.cuda_graphs,
                "cuda_graphs",
                self.cuda_graphs,
                f"false with {key}: {shown(getattr(self, key))}",
            )
        _require(
            self.dynamic_padding or self.packing is not True,
            "packing",
            self.packing,
            "auto or false with dynamic_padding: false: that pads to max_seq_len, this not at all",
        )
        _require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")
        _require(self.max_seq_len >= 2, "max_seq_len", self.max_seq_len, "2 or more")
        _require(0 <= self.dropout < 1, "dropout", self.dropout, "0 to below 1")
        for key in ("beta1", "beta2"):
            _require(0 <= getattr(self, key) < 1, key, getattr(self, key), "0 to below 1")
        _require(self.max_lr > 0, "max_lr", self.max_lr, "above 0")
        _require(
            0 <= self.min_lr <= self.max_lr, "min_lr", self.min_lr, f"0 to max_lr ({self.max_lr})"
        )
        _require(
            self.sample_max_tokens >= 1, "sample_max_tokens", self.sample_max_tokens, "1 or more"
        )
        _require(
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
            _require(self.shard == "none" or value == "fp32", key, value, "fp32 with shard: full")
        _require(
            self.lora_rank == 0 or self.weights == "fp32",
            "weights",
            self.weights,
            "fp32 with lora_rank: adapters are small, and their base is held in bf16 as it is",
        )
        _require(
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
                _require(fits, "lora_base", self.lora_base, f"bf16 with {key}: {value}")
        _require(self.lora_rank >= 0, "lora_rank", self.lora_rank, "0 or more")
        _require(
            self.lora_rank == 0 or self.shard == "none",
            "lora_rank",
            self.lora_rank,
            "0 with shard: full: it spreads what is trained, and adapters are small",
        )
        _require(self.lora_alpha > 0, "lora_alpha", self.lora_alpha, "above 0")
        _require(0 <= self.lora_dropout < 1, "lora_dropout", self.lora_dropout, "0 to below 1")
        names = self.lora_projections
        _require(
            bool(names) and set(names) <= set(PROJECTIONS),
            "lora_targets",
            self.lora_targets,
            f"all-linear, or some of {', '.join(PROJECTIONS)}",
        )


@dataclass(frozen=True, kw_only=True)
class BaseParams:
    """Which pretrained checkpoint train starts from and evaluate compares with."""

    model_path: str

    def __post_init__(self) -> None:
        _require(self.model_path != "", "model_path", self.model_path, "a path")


@dataclass(frozen=True, kw_only=True)
class EvaluateParams(ExecutionParams):
    """What the evaluate stage reads."""

    eval_json_path: str
    """The validation split, or a held-out file of conversations."""
    exact_match_max_tokens: int
    """Exact match is scored where the reference reply has at most so many tokens."""
    system_prompt: str
    max_seq_len: int
    supervise: Literal["last_reply", "all_replies"]

    @property
    def on_validation_split(self) -> bool:
        """Whether the validation split is scored, not a held-out file."""
        return is_validation_split(self.eval_json_path)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.eval_json_path != "", "eval_json_path", self.eval_json_path, "a path")
        _require(
            self.exact_match_max_tokens >= 1,
            "exact_match_max_tokens",
            self.exact_match_max_tokens,
            "1 or more",
        )


@dataclass(frozen=True, kw_only=True)
class TrackingParams:
    """What tracking reads; no stage's outs depend on it."""

    mlflow_experiment: str
    log_checkpoint: bool

    def __post_init__(self) -> None:
        _require(
            self.mlflow_experiment.strip() not in ("", "Default"),
            "mlflow_experiment",
            self.mlflow_experiment,
            "a name other than 'Default'",
        )


@dataclass(frozen=True, kw_only=True)
class ProcessParams:
    """Locks and resuming; no stage's outs depend on it."""

    resume_interval: float
    """Seconds between two savings of the resume state; 0: at epoch ends only."""
    share_device: bool
    """Whether several stages may compute on one GPU at a time."""

    def __post_init__(self) -> None:
        _require(self.resume_interval >= 0, "resume_interval", self.resume_interval, "0 or more")


PIPELINE = (
    PrepareParams,
    TokenizeParams,
    BaseParams,
    TrainParams,
    EvaluateParams,
    TrackingParams,
    ProcessParams,
)
"""The owners of the keys of the root params.yaml."""


class Params:
    """A params file that has been checked whole.

    Raises InputError naming the key, what it got and what it wants.
    """

    def __init__(
        self, path: str | Path = "params.yaml", owners: tuple[type[Any], ...] = PIPELINE
    ) -> None:
        self.path = path
        self.values = read_mapping(path)
        types = self.types = {
            field.name: field.type for owner in owners for field in dataclasses.fields(owner)
        }
        """What each key's value must be."""
        for key in self.values:
            if key not in types:
                raise InputError(f"{path}: unknown key {shown(key)}{did_you_mean(key, types)}")
        for key, wanted in types.items():
            if key not in self.values:
                raise InputError(f"{path}: missing key {key!r}, wanted {type_name(wanted)}")
            self.values[key] = check_type(f"{path}: {key}", self.values[key], wanted)
        for owner in owners:
            self.section(owner)

    def section(self, owner: type[Section]) -> Section:
        """One owner's values."""
        names = [field.name for field in dataclasses.fields(owner)]  # type: ignore[arg-type]
        try:
            return owner(**{name: self.values[name] for name in names})
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None


def without(params: Params, *owners: type[Any]) -> dict[str, Any]:
    """The pipeline's params without those that only these owners read."""
    others = (other for other in PIPELINE if other not in owners)
    names = {field.name for other in others for field in dataclasses.fields(other)}
    return {key: value for key, value in params.values.items() if key in names}
