"""`python -m benchmarks.bench_generation`: batched generation with a KV cache against the textbook
way, one prompt at a time with a whole forward pass for every new token.

Both give greedily the same number of tokens after the same prompts, in one process, in turns
A B A B; the table holds medians, and the ratio of the two.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from benchmarks.results import section
from benchmarks.workload import SHAPE
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import autocast, describe, pick_device
from simple_llama.model.generation import generate

Prompts = Sequence[Sequence[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Cached generation against the textbook's.")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=100, help="on average")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    model = make_model().to(device)
    prompts = make_prompts(model, arguments.prompts, arguments.prompt_tokens)
    ways: dict[str, Callable[[Prompts], object]] = {
        "naive, one by one": lambda some: naive(model, some, arguments.new_tokens),
        "KV cache, one by one": lambda some: [
            cached(model, [prompt], arguments.new_tokens) for prompt in some
        ],
        "KV cache, one batch": lambda some: cached(model, some, arguments.new_tokens),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with autocast(device, "auto"):
        for way in ways.values():
            way(prompts[:2])  # warm
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                seconds[name].append(timed(way, prompts, device))
    command = " ".join(["python -m benchmarks.bench_generation", *sys.argv[1:]])
    with section("Generation", command):
        report(seconds, arguments, describe(device, "auto"), model)


def make_model() -> Decoder:
    """9.0M parameters: the shape of the training benchmark."""
    model = Decoder(SHAPE)
    model.initialise(0)
    return model.eval()


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


def timed(way: Callable[[Prompts], object], prompts: Prompts, device: torch.device) -> float:
    """Seconds."""
    begin = time.perf_counter()
    way(prompts)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def report(
    seconds: dict[str, list[float]], arguments: argparse.Namespace, machine: str, model: Decoder
) -> None:
    size = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{size / 1e6:.1f}M parameters, {arguments.prompts} prompts of about "
        f"{arguments.prompt_tokens} tokens, {arguments.new_tokens} new tokens each, "
        f"{arguments.rounds} rounds, {machine}, torch {torch.__version__}\n"
    )
    print(f"{'':<22}{'ms per prompt':>15}{'new tokens/s':>14}{'times as fast':>15}")
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    slowest = medians["naive, one by one"]
    for name, median in medians.items():
        speed = arguments.prompts * arguments.new_tokens / median
        each = median / arguments.prompts * 1000
        print(f"{name:<22}{each:>15,.1f}{speed:>14,.0f}{slowest / median:>15.1f}")


if __name__ == "__main__":
    main()
