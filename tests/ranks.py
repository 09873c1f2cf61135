"""Functions run by several processes as the ranks of one group."""

import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from simple_llama.training.distributed import init_process_group


def together(
    of: int, work: Callable[..., Any], *arguments: Any, sharded: bool = False
) -> list[Any]:
    """What `work(ranks, *arguments)` gives on each of the ranks; a failure in one is raised."""
    # forked from a server that has imported everything, each rank starts in milliseconds
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.test_distributed", "torch.distributed.fsdp", "torch.distributed.checkpoint"]
    )
    with tempfile.TemporaryDirectory() as folder:
        place = f"file://{folder}/store"
        results = [Path(folder, f"{rank}.pt") for rank in range(of)]
        processes = [
            context.Process(
                target=_rank,
                args=(
                    f"{place}?rank={rank}&world_size={of}",
                    sharded,
                    results[rank],
                    work,
                    arguments,
                ),
            )
            for rank in range(of)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * of
        return [torch.load(result, weights_only=False) for result in results]


def _rank(
    url: str, sharded: bool, result: Path, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    with init_process_group("cpu", sharded=sharded, url=url) as ranks:
        torch.save(work(ranks, *arguments), result)
