"""CUDA graphs without a GPU: what a capture keeps, and what a replay does again."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from simple_llama.model.capture import Work
from tests.support.trainings import by_definition


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """PyTorch's operations with the tensors they were called on, as a CUDA graph keeps kernels with
    the memory they were launched on. All that Python decides is decided once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        """Do it all again, in the same memory."""
        for func, args, kwargs, out in self.calls:
            before = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
            for old, new in zip(_tensors(out), _tensors(func(*args, **kwargs)), strict=True):
                if old.untyped_storage().data_ptr() not in before:  # no view of what was given
                    old.copy_(new)


def record(work: Work) -> Work:
    """For a captured graph. It is tried before, as on a GPU, and what is captured does not run."""
    work()
    recording = Recording()
    with recording:
        work()
    return recording.replay


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> Tensor:
    """`by_definition` as one operation, whose offsets are read when it runs, as a kernel's are."""
    assert torch.equal(cu_seq_q, cu_seq_k) and max_q == max_k
    found: Tensor = _varlen(query, key, value, cu_seq_q, max_q, scale, [*window_size], enable_gqa)
    return found


@torch.library.custom_op("simple_llama_tests::varlen", mutates_args=())
def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    longest: int,
    scale: float,
    window: list[int],
    gqa: bool,
) -> Tensor:
    before, after = window
    return by_definition(
        query,
        key,
        value,
        offsets,
        offsets,
        longest,
        longest,
        scale=scale,
        window_size=(before, after),
        enable_gqa=gqa,
    )


@torch.library.custom_op("simple_llama_tests::varlen_backward", mutates_args=())
def _varlen_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    longest: int,
    scale: float,
    window: list[int],
    gqa: bool,
) -> list[Tensor]:
    def differentiate() -> list[Tensor]:
        given = [x.detach().requires_grad_() for x in (query, key, value)]
        out = _varlen._init_fn(*given, offsets, longest, scale, window, gqa)
        return [*torch.autograd.grad(out, given, gradient)]

    with ThreadPoolExecutor(1) as other_thread:  # within an operation autograd is off in its thread
        return other_thread.submit(differentiate).result()


def _save(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.others = inputs[4:]


def _backward(ctx: Any, gradient: Tensor) -> Any:
    return *_varlen_backward(gradient.contiguous(), *ctx.saved_tensors, *ctx.others), *[None] * 5


_varlen.register_autograd(_backward, setup_context=_save)
