"""Memory of a training by ranks and blocks: python -m benchmarks.bench_distributed

A model of about 100M parameters in float32 on a CPU, each way in processes of its own. Prints
the largest rank's peak resident memory and its seconds per step, after one step to warm up.
"""

import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import workload
from benchmarks.results import section
from simple_llama.data.batches import collate
from simple_llama.data.tokens import Tokens
from simple_llama.model.decoder import Decoder
from simple_llama.model.folder import load_model, save_model
from simple_llama.params.reading import Params
from simple_llama.params.train import TrainParams
from simple_llama.training.distributed import (
    SINGLE_PROCESS,
    GradientAverager,
    Ranks,
    init_process_group,
)
from simple_llama.training.loss import summed_loss
from simple_llama.training.optimizer import AdamW
from simple_llama.training.preflight import peak_memory

CONFIG = workload.SHAPES["94.4M"]
EXAMPLES, LENGTH, STEPS = 4, 256, 2
"""Of a rank's micro-batch, and steps that are timed."""


def steps(ranks: Ranks, base: Path, recompute: bool) -> float:
    """Seconds per step."""
    model = load_model(base, sharded=ranks.sharded)
    model.checkpoint_blocks = recompute
    optimizer = AdamW(model, Params().section(TrainParams))
    averager = GradientAverager(model, ranks)
    ids = np.random.default_rng(ranks.rank).integers(0, CONFIG.vocab_size, (EXAMPLES, LENGTH))
    tokens = Tokens.from_examples([(row, np.ones(LENGTH)) for row in ids])
    batch = collate(tokens, np.arange(EXAMPLES), 0, None)
    started = 0.0
    for step in range(STEPS + 1):
        if step == 1:
            started = time.perf_counter()
        loss = summed_loss(model, batch) / len(batch.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        averager.average()
        optimizer.step()
        optimizer.zero_grad()
    return (time.perf_counter() - started) / STEPS


def process(rank: int, of: int, sharded: bool, recompute: bool, folder: Path, out: Any) -> None:
    torch.set_num_threads(1)
    if of == 1:
        seconds = steps(SINGLE_PROCESS, folder / "base", recompute)
    else:
        url = f"file://{folder}/store-{sharded}?rank={rank}&world_size={of}"
        with init_process_group("cpu", sharded=sharded, url=url) as ranks:
            seconds = steps(ranks, folder / "base", recompute)
    out.put((peak_memory(torch.device("cpu")), seconds))


def measure(
    name: str, of: int, folder: Path, *, sharded: bool = False, recompute: bool = False
) -> None:
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    arguments = (of, sharded, recompute, folder, out)
    processes = [context.Process(target=process, args=(rank, *arguments)) for rank in range(of)]
    for one in processes:
        one.start()
    found = [out.get() for _ in processes]
    for one in processes:
        one.join()
    memory, seconds = (max(values) for values in zip(*found, strict=True))
    print(f"{name:42} {memory / 1e9:5.2f} GB a rank at most  {seconds:6.2f} s a step", flush=True)


def main() -> None:
    # freed tensors go back at once, or glibc would keep about as much as is in use
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "131072"
    command = "python -m benchmarks.bench_distributed"
    with section("Several processes", command), tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = Decoder(CONFIG)
        model.init_weights(0)
        print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters", flush=True)
        save_model(model, folder / "base")
        measure("1 process", 1, folder)
        measure("1 process, activation_checkpointing: blocks", 1, folder, recompute=True)
        measure("2 processes, shard: none", 2, folder)
        measure("2 processes, shard: full", 2, folder, sharded=True)


if __name__ == "__main__":
    main()
