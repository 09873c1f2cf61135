"""Memory and time of a step by what weights, moments and a frozen base are held in:
python -m benchmarks.bench_settings

One random checkpoint in bfloat16, the same batches; each training in a process of its own, which
reads the checkpoint as train does; in turn, with spread. Memory is the process's peak, on a GPU
that of its tensors; 8 billion parameters on a GPU have not been measured yet.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import workload
from benchmarks.results import section
from simple_llama.data.tokens import Tokens
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import describe_device, pick_device, uses_bf16
from simple_llama.model.folder import load_model, save_model
from simple_llama.model.quantisation import weight_count
from simple_llama.params.reading import Params
from simple_llama.params.train import TrainParams
from simple_llama.training.fine_tuning import fine_tuning_method
from simple_llama.training.loop import train
from simple_llama.training.optimizer import trainable_parameters
from simple_llama.training.preflight import peak_memory
from simple_llama.training.state import StepRecord, TrainingData

TOKENS = 128
"""Of an example; half of them are supervised."""
EXAMPLES = 4
"""Of a step."""
STEPS = 4
WARMUP = 1
"""Steps that are not counted."""
FIRST = "all weights, computed in bf16"
"""What the others are compared with."""
WAYS: dict[str, dict[str, Any]] = {
    FIRST: {},
    "all weights, computed in fp32": {"precision": "fp32"},
    "weights: bf16": {"weights": "bf16"},
    "weights: bf16, optimizer_state: 8bit": {"weights": "bf16", "optimizer_state": "8bit"},
    "lora_rank: 8, lora_base: bf16": {"lora_rank": 8},
    "lora_rank: 8, lora_base: nf4": {"lora_rank": 8, "lora_base": "nf4"},
    "peft, rank 8, on bf16": {"peer": "bf16"},
    "peft and bitsandbytes, rank 8, on nf4": {"peer": "nf4"},
}
BLOCKS = "activation_checkpointing: blocks"
WAYS |= {
    f"{name}, {BLOCKS}": {**way, "activation_checkpointing": "blocks"} for name, way in WAYS.items()
}


class Clock:
    """A callback that remembers how long the steps took, and of the processor."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.processor: list[float] = []
        self.before = time.process_time()

    def on_optimizer_step(self, record: StepRecord) -> None:
        self.add(record.loss, record.seconds)

    def add(self, loss: float, seconds: float) -> None:
        now = time.process_time()
        self.seconds.append(seconds)
        self.losses.append(loss)
        self.processor.append(now - self.before)
        self.before = now

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_settings", description=__doc__
    )
    parser.add_argument("--shape", default="94.4M", choices=workload.SHAPES)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--one", metavar="WAY", help="train once, print JSON")
    parser.add_argument("--base", type=Path, help="the checkpoint; written where there is no --one")
    arguments = parser.parse_args()
    if arguments.base:
        if arguments.one:
            torch.set_num_threads(
                1
            )  # several wait for each other on a busy machine, and that counts
            peer = "peer" in WAYS[arguments.one]
            print(json.dumps((peft_and_bitsandbytes if peer else measure)(arguments)))
        else:
            save_base(arguments.shape, arguments.base)
        return
    command = [sys.executable, "-m", "benchmarks.bench_settings", *sys.argv[1:]]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        command += ["--base", str(Path(folder, "base"))]
        subprocess.run(command, check=True)
        for _ in range(arguments.rounds):
            for name, measured in results.items():
                measured.append(alone([*command, "--one", name]))
    title = "What weights are held in"
    with section(title, " ".join(["python -m benchmarks.bench_settings", *sys.argv[1:]])):
        report(results)


def alone(command: list[str]) -> dict[str, Any]:
    """A training in a process of its own; why it failed, where it did."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def save_base(shape: str, folder: Path) -> None:
    model = Decoder(workload.SHAPES[shape])
    model.init_weights(0)
    save_model(model, folder, dtype=torch.bfloat16)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """One training: what it took."""
    device = pick_device(arguments.device)
    settings = replace(
        Params(Path(__file__).parents[1] / "params.yaml").section(TrainParams),
        **{"precision": "bf16", "lora_targets": "all-linear", **WAYS[arguments.one]},
        lora_dropout=0.0,
        device=arguments.device,
        batch_size=EXAMPLES,
        micro_batch_tokens=EXAMPLES * TOKENS,
        max_steps=STEPS,
        warmup_iterations=1,
        max_lr=1e-4,
        max_seq_len=TOKENS,
        eval_interval=0,
        sample_prompts=0,
    )
    model = load_model(
        arguments.base,
        device,
        compact=settings.lora_rank > 0 and uses_bf16(device, settings.precision),
        nf4=settings.lora_base == "nf4",
    )
    fine_tuning_method(settings, str(arguments.base), Path("none")).prepare(model, settings)
    clock = Clock()
    train(model, random_data(model.config.vocab_size), settings, clock)
    return {
        "on": describe_device(device, settings.precision),
        "parameters": weight_count(model),
        "trained": weight_count(torch.nn.ParameterList(trainable_parameters(model).values())),
        "seconds": statistics.median(clock.seconds[WARMUP:]),
        "processor": statistics.median(clock.processor[WARMUP:]),
        "memory": peak_memory(device),
        "loss": clock.losses[0],
    }


def peft_and_bitsandbytes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same by peft, in a plain loop: frozen matrices in bfloat16, or in 4 bits by
    BitsAndBytesConfig with double quantisation, computed in bf16; the rest in float32."""
    import peft
    import transformers

    way, device = WAYS[arguments.one], pick_device(arguments.device)
    models: Any = transformers.AutoModelForCausalLM
    config: Any = transformers.BitsAndBytesConfig
    kept = config(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = models.from_pretrained(
        arguments.base,
        dtype=torch.bfloat16,
        device_map=str(device),
        **({"quantization_config": kept} if way["peer"] == "nf4" else {}),
    )
    blocks = "activation_checkpointing" in way
    if way["peer"] == "nf4":
        prepare: Any = peft.prepare_model_for_kbit_training
        model = prepare(
            model,
            use_gradient_checkpointing=blocks,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    elif blocks:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, lora).train()
    weights = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4)
    data, clock = random_data(workload.SHAPES[arguments.shape].vocab_size), Clock()
    ids = torch.from_numpy(data.train.ids).long().view(STEPS, EXAMPLES, TOKENS).to(device)
    mask = torch.from_numpy(data.train.mask).bool().view(ids.shape).to(device)
    for step in range(STEPS):
        started = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            labels = ids[step].masked_fill(~mask[step], -100)
            loss = model(input_ids=ids[step], labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.add(loss.item(), time.perf_counter() - started)
    return {
        "on": describe_device(device, "bf16"),
        "parameters": 0,
        "trained": sum(one.numel() for one in weights),
        "seconds": statistics.median(clock.seconds[WARMUP:]),
        "processor": statistics.median(clock.processor[WARMUP:]),
        "memory": peak_memory(device),
        "loss": clock.losses[0],
    }


def random_data(vocabulary: int) -> TrainingData:
    random = np.random.default_rng(0)
    mask = [0] * (TOKENS // 2) + [1] * (TOKENS // 2)
    examples = [(random.integers(0, vocabulary, TOKENS), mask) for _ in range(EXAMPLES * STEPS)]
    train, val = Tokens.from_examples(examples), Tokens.from_examples(examples[:2])
    return TrainingData(train=train, val=val, pad_id=0, stop_ids=[1])


def report(results: dict[str, list[dict[str, Any]]]) -> None:
    base = results[FIRST]
    for found in (one[0] for one in results.values()):
        if found.get("parameters") and found["trained"] < found["parameters"]:
            print(
                f"{found['parameters'] / 1e6:.1f}M parameters on {found['on']}, adapters of "
                f"{found['trained'] / 1e6:.2f}M; steps of {EXAMPLES * TOKENS} tokens\n"
            )
            break
    print(f"{'':74}   peak  ms a step   processor time / first")
    for name, measured in results.items():
        if failed := [one["failed"] for one in measured if "failed" in one]:
            print(f"{name:73} {failed[0]}")
            continue
        memory = statistics.median(one["memory"] for one in measured)
        seconds = statistics.median(one["seconds"] for one in measured)
        line = f"{name:73} {memory / 1e9:5.2f} GB {seconds * 1e3:10,.0f}"
        if not any("failed" in one for one in base):
            ratios = [one["processor"] / other["processor"] for one, other in zip(measured, base)]
            line += f"   {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(line)


if __name__ == "__main__":
    main()
