"""A peer: TRL's SFTTrainer on transformers' LlamaForCausalLM of the same shape and weights.

It has no dropout outside attention, so it trains without any: in its favour.
"""

import tempfile
import time
import warnings
from typing import Any

import torch

from benchmarks import textbook, workload
from benchmarks.workload import SHAPE, STEP_EXAMPLES, Step
from simple_llama.model.config import ModelConfig
from simple_llama.model.config_json import config_json
from simple_llama.model.decoder import Decoder

SETTINGS: dict[str, dict[str, Any]] = {
    "bf16, 4 x 8": {"bf16": True, "accumulate": 4},
    "bf16, 1 x 32": {"bf16": True, "accumulate": 1},
    "float32, 4 x 8": {"bf16": False, "accumulate": 4},
    "float32, 1 x 32": {"bf16": False, "accumulate": 1},
    "bf16, by length, 1 x 32": {"bf16": True, "accumulate": 1, "by_length": True},
    "bf16, compiled, 1 x 32": {"bf16": True, "accumulate": 1, "compiled": True},
}
"""Micro-batches x examples. Packing is left out: without a GPU's variable-length attention examples
would see each other, another training signal."""


def train(
    count: int,
    shape: ModelConfig = SHAPE,
    device: str = "cpu",
    *,
    bf16: bool,
    accumulate: int,
    by_length: bool = False,
    compiled: bool = False,
    liger: bool = False,
) -> list[Step]:
    """The first `count` steps; by length, other examples stand in a step."""
    import datasets
    import tokenizers
    import transformers
    import trl

    class Clock(transformers.TrainerCallback):
        """Time from the end of one step to the end of the next, so data are included."""

        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_train_begin(self, *_: object, **__: object) -> None:
            self.ends.append(time.perf_counter())

        def on_step_end(self, *_: object, **__: object) -> None:
            workload.finish(device)
            self.ends.append(time.perf_counter())

    warnings.filterwarnings("ignore", category=FutureWarning)  # what it says to its own authors
    datasets.disable_progress_bars()
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = [textbook.example(int(i)) for step in workload.steps(count) for i in step]
    data = datasets.Dataset.from_list(
        [{"input_ids": ids.tolist(), "labels": labels.tolist()} for ids, labels in rows]
    )
    words = tokenizers.models.WordLevel({"<PAD>": workload.PAD_ID, "<UNK>": 1}, "<UNK>")
    fast: Any = transformers.PreTrainedTokenizerFast
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        model = as_transformers(workload.new_model(0.0, shape, device), device)
        settings = trl.SFTConfig(
            output_dir=folder,
            max_steps=count,
            per_device_train_batch_size=STEP_EXAMPLES // accumulate,
            gradient_accumulation_steps=accumulate,
            train_sampling_strategy="group_by_length" if by_length else "sequential",
            bf16=bf16,
            torch_compile=compiled,
            use_liger_kernel=liger,
            use_cpu=device == "cpu",
            gradient_checkpointing=False,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            weight_decay=0.1,
            max_grad_norm=1.0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = trl.SFTTrainer(
            model=model,
            args=settings,
            train_dataset=data,
            processing_class=fast(
                tokenizer_object=tokenizers.Tokenizer(words),
                pad_token="<PAD>",
                eos_token="<UNK>",
            ),
            callbacks=[clock],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    sizes = [len(ids) for ids, _ in rows]
    real = [sum(sizes[i : i + STEP_EXAMPLES]) for i in range(0, len(sizes), STEP_EXAMPLES)]
    if by_length:  # which examples a step had is not told
        real = [sum(real) // count] * count
    seconds = [end - begin for begin, end in zip(clock.ends, clock.ends[1:], strict=False)]
    return [Step(*step) for step in zip(real, seconds, losses, strict=True)]


def as_transformers(model: Decoder, device: str, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' model with the same weights, without a way through the disk."""
    import transformers

    configs: Any = transformers.AutoConfig
    models: Any = transformers.AutoModelForCausalLM
    with torch.device(device):
        theirs = models.from_config(configs.for_model(**config_json(model.config)), dtype=dtype)
    weights = {
        name if name.startswith("lm_head.") else f"model.{name}": weight
        for name, weight in model.state_dict().items()
    }
    theirs.load_state_dict(weights)
    return theirs
