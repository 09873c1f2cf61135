"""Which device computes, and in which precision."""

import contextlib
from contextlib import AbstractContextManager

import torch

from simple_llama.errors import InputError


def pick_device(name: str) -> torch.device:
    """The device of params.yaml's `device`; auto takes a GPU where there is one."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise InputError(f"device: got {name}, but {torch.cuda.device_count()} GPUs are visible")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError("device: got mps, but this machine has none")
    return torch.device(name)


def uses_bf16(device: torch.device, precision: str) -> bool:
    """Whether matrix products run in bfloat16; auto asks whether the device is fast at it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context in which forward passes run."""
    if uses_bf16(device, precision):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def describe(device: torch.device, precision: str) -> str:
    """For a person: 'cpu, 2 threads, fp32'."""
    kind = "bf16" if uses_bf16(device, precision) else "fp32"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {kind}"
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{device.type}{threads}, {kind}"
