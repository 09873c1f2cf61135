"""`python -m benchmarks.bench_evaluation`: what evaluate does.

Full validation against the forward pass of training steps on the same examples; batched generation
with a KV cache against the textbook way, one prompt at a time with a whole forward pass for every
new token, both greedy and with the same number of tokens. In one process, in turns A B A B; the
tables hold medians, and ratios.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from benchmarks import workload
from benchmarks.results import section
from benchmarks.workload import STEP_EXAMPLES
from simple_llama.data.batches import micro_batches
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import autocast, describe_device, pick_device
from simple_llama.model.generation import generate
from simple_llama.training.loss import score, summed_loss

Prompts = Sequence[Sequence[int]]
EVERY = 6
"""One example of so many is validated on."""
MICRO_BATCH_TOKENS = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description="Validation and generation.")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=100, help="on average")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    model = workload.new_model(0.0).to(device)
    size = sum(parameter.numel() for parameter in model.parameters())
    with section("Evaluation", " ".join(["python -m benchmarks.bench_evaluation", *sys.argv[1:]])):
        print(
            f"{size / 1e6:.1f}M parameters, {arguments.rounds} rounds, "
            f"{describe_device(device, 'auto')}, torch {torch.__version__}\n"
        )
        report_validation(model, device, arguments.rounds)
        report_generation(model.eval(), device, arguments)


def report_validation(model: Decoder, device: torch.device, rounds: int) -> None:
    tokens = workload.tokens()
    examples = np.arange(0, len(tokens), EVERY)
    real = int(tokens.lengths[examples].sum())
    budget, pad_id = MICRO_BATCH_TOKENS, workload.PAD_ID

    def validation() -> None:
        score(model, tokens, examples, max_tokens=budget, pad_id=pad_id, precision="auto")

    def training_forward() -> None:
        packing = device.type == "cpu"  # as packing: auto has it
        for begin in range(0, len(examples), STEP_EXAMPLES):
            step = examples[begin : begin + STEP_EXAMPLES]
            for batch in micro_batches(
                tokens, step, max_tokens=budget, pad_id=pad_id, packing=packing
            ):
                with autocast(device, "auto"):
                    summed_loss(model, batch.to(device))

    ways: dict[str, Callable[[], object]] = {
        "forward pass of training": training_forward,
        "full validation": validation,
    }
    print(f"{len(examples):,} examples of {workload.data_name()}, {real:,} tokens\n")
    print(f"{'':<26}{'tokens/s':>12}{'times as fast':>15}")
    medians = in_turns(ways, rounds, device)
    for name, median in medians.items():
        times = medians["forward pass of training"] / median
        print(f"{name:<26}{real / median:>12,.0f}{times:>15.2f}")


def report_generation(model: Decoder, device: torch.device, arguments: argparse.Namespace) -> None:
    prompts = make_prompts(model, arguments.prompts, arguments.prompt_tokens)
    count = arguments.new_tokens
    ways: dict[str, Callable[[], object]] = {
        "naive, one by one": lambda: naive(model, prompts, count),
        "KV cache, one by one": lambda: [cached(model, [prompt], count) for prompt in prompts],
        "KV cache, one batch": lambda: cached(model, prompts, count),
    }
    print(
        f"\n{arguments.prompts} prompts of about {arguments.prompt_tokens} tokens, "
        f"{count} new tokens each\n"
    )
    print(f"{'':<26}{'new tokens/s':>12}{'times as fast':>15}{'ms per prompt':>15}")
    with autocast(device, "auto"):
        medians = in_turns(ways, arguments.rounds, device)
    for name, median in medians.items():
        speed = len(prompts) * count / median
        times = medians["naive, one by one"] / median
        print(f"{name:<26}{speed:>12,.0f}{times:>15.1f}{median / len(prompts) * 1000:>15,.1f}")


def in_turns(
    ways: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each; what comes before the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for count in range(rounds + 1):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            workload.finish(device.type)
            if count:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


def make_prompts(model: Decoder, count: int, mean: int) -> list[list[int]]:
    """Random ids, lengths from half to one and a half of the mean."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(mean // 2, mean + mean // 2 + 1, count)
    return [rng.integers(0, model.config.vocab_size, length).tolist() for length in lengths]


@torch.inference_mode()
def naive(model: Decoder, prompts: Prompts, new_tokens: int) -> None:
    """The whole sequence through the model for every token, scores for all its positions."""
    device = next(model.parameters()).device
    for prompt in prompts:
        ids = torch.tensor([list(prompt)], device=device)
        for _ in range(new_tokens):
            logits = model.logits(model(ids))[:, -1]
            ids = torch.cat((ids, logits.argmax(-1, keepdim=True)), dim=1)


def cached(model: Decoder, prompts: Prompts, new_tokens: int) -> list[list[int]]:
    return generate(model, prompts, max_new_tokens=new_tokens, stop_ids=[])


if __name__ == "__main__":
    main()
