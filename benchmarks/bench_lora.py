"""Memory and time of a step with adapters against full fine-tuning: python -m benchmarks.bench_lora

One random model, the same batches; each training in a process of its own, in turn, with spread.
The weights are such as bfloat16 holds exactly, like those of most checkpoints, so that under bf16
the frozen ones are kept in it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results import section
from simple_llama.data.tokens import Tokens
from simple_llama.model.config import ModelConfig
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import describe_device, pick_device
from simple_llama.params import Params, TrainParams
from simple_llama.training.fine_tuning import fine_tuning_method
from simple_llama.training.loop import train
from simple_llama.training.optimizer import trainable_parameters
from simple_llama.training.preflight import peak_memory
from simple_llama.training.state import StepRecord, TrainingData

VOCABULARY = 8192
TOKENS = 128
"""Of an example; half of them are supervised."""
STEPS = 6
WARMUP = 1
"""Steps that are not counted."""
ROUNDS = 3


class Clock:
    """An observer that remembers how long the steps took, and of the processor."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.processor: list[float] = []
        self.before = time.process_time()

    def on_optimizer_step(self, record: StepRecord) -> None:
        now = time.process_time()
        self.seconds.append(record.seconds)
        self.processor.append(now - self.before)
        self.before = now

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_lora", description=__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--one", type=int, metavar="RANK", help="train once (0: full), print JSON")
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(measure(arguments)))
        return
    command = [sys.executable, "-m", "benchmarks.bench_lora", *sys.argv[1:], "--one"]
    results: dict[int, list[dict[str, Any]]] = {0: [], arguments.rank: []}
    for _ in range(ROUNDS):
        for rank, measured in results.items():
            done = subprocess.run([*command, str(rank)], capture_output=True, text=True, check=True)
            measured.append(json.loads(done.stdout.splitlines()[-1]))
    with section("Adapters", " ".join(["python -m benchmarks.bench_lora", *sys.argv[1:]])):
        report(results[0], results[arguments.rank], arguments.rank)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One training: what it took. Memory is that of the process, on a GPU of its tensors."""
    torch.set_num_threads(1)  # several wait for each other on a busy machine, and waiting counts
    device = pick_device(arguments.device)
    settings = replace(
        Params(Path(__file__).parents[1] / "params.yaml").section(TrainParams),
        lora_rank=arguments.one,
        lora_targets="all-linear",
        lora_dropout=0.0,
        device=arguments.device,
        batch_size=4,
        micro_batch_tokens=4 * TOKENS,
        max_steps=STEPS,
        warmup_iterations=1,
        max_lr=1e-4,
        max_seq_len=TOKENS,
        eval_interval=0,
        sample_prompts=0,
    )
    model = random_model(arguments.width, arguments.layers).to(device)
    size = sum(parameter.numel() for parameter in model.parameters())
    fine_tuning_method(settings, "random", Path("none")).prepare(model, settings)
    clock = Clock()
    train(model, random_data(), settings, clock)
    weights = sum(parameter.numel() for parameter in trainable_parameters(model).values())
    return {
        "on": describe_device(device, settings.precision),
        "parameters": size,
        "trained": weights,
        "seconds": statistics.median(clock.seconds[WARMUP:]),
        "processor": statistics.median(clock.processor[WARMUP:]),
        "memory": peak_memory(device),
    }


def random_model(width: int, layers: int) -> Decoder:
    config = ModelConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        head_dim=64,
        max_position_embeddings=TOKENS,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        tie_word_embeddings=True,
        attention_bias=False,
        mlp_bias=False,
    )
    model = Decoder(config)
    model.init_weights(0)
    for parameter in model.parameters():
        parameter.data.copy_(parameter.data.bfloat16())
    return model


def random_data() -> TrainingData:
    random = np.random.default_rng(0)
    mask = [0] * (TOKENS // 2) + [1] * (TOKENS // 2)
    examples = [(random.integers(0, VOCABULARY, TOKENS), mask) for _ in range(4 * STEPS)]
    train, val = Tokens.from_examples(examples), Tokens.from_examples(examples[:2])
    return TrainingData(train=train, val=val, pad_id=0, stop_ids=[1])


def report(full: list[dict[str, Any]], lora: list[dict[str, Any]], rank: int) -> None:
    one = lora[0]
    print(
        f"{one['parameters'] / 1e6:.1f}M parameters on {one['on']}; rank {rank} in every "
        f"projection trains {one['trained'] / 1e6:.2f}M"
    )
    for name, results in (("full", full), (f"LoRA, rank {rank}", lora)):
        times = [result["seconds"] for result in results]
        memory = statistics.median(result["memory"] for result in results)
        print(
            f"{name:15} {statistics.median(times) * 1e3:7.1f} ms a step "
            f"({min(times) * 1e3:.1f} to {max(times) * 1e3:.1f}), {memory / 1e9:.2f} GB at most"
        )
    for what in ("seconds", "processor", "memory"):
        ratios = [b[what] / a[what] for a, b in zip(full, lora, strict=True)]
        print(
            f"LoRA / full, {what}: {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
