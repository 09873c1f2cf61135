"""CUDA graphs: work whose kernels are launched at once, because launching them one by one from
Python is most of a small model's time. A graph reads and writes the same memory each time."""

import warnings
from collections.abc import Callable

import torch

Work = Callable[[], None]
Capture = Callable[[Work], Work]
"""Makes of work a function that replays it."""


def shared_capture() -> Capture:
    """Captures whose graphs have their memory in common: what one computes is used before another
    is replayed."""
    pool = None

    def capture(work: Work) -> Work:
        nonlocal pool
        # PyTorch wants it done before, on a side stream
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            work()
        pool = graph.pool()
        return graph.replay

    return capture


def warn_without(what: str, error: Exception) -> None:
    """Say in one line what failed, and that it goes on without it."""
    reason = str(error).strip().splitlines()
    warnings.warn(
        f"{what}, going on without it: {type(error).__name__}: {reason[0] if reason else ''}",
        stacklevel=2,
    )
