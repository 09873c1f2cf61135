"""Which device computes, and in which precision."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from simple_llama.errors import InputError
from simple_llama.process import claim_locks

SDPA_BACKENDS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""PyTorch's attention kernels on CUDA but cuDNN's, which prepares a plan for each new shape. In
decoding each token has a new number of keys: most likely why a call took 16.5 ms on an H200."""


def allowed_devices(name: str) -> list[torch.device]:
    """The devices that params.yaml's `device` allows: auto and cuda mean any GPU; auto a CPU where
    there is none.

    Raises InputError where this machine has no such device.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise InputError(f"device: got {name!r}, wanted auto, cpu, cuda, cuda:N or mps")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto" and not gpus:
        return [torch.device("mps" if torch.backends.mps.is_available() else "cpu")]
    kind, _, number = name.partition(":")
    if kind == "cuda" and int(number or 0) >= gpus:
        raise InputError(f"device: got {name}, but {gpus} GPUs are visible")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError("device: got mps, but this machine has none")
    if name in ("auto", "cuda"):
        return [torch.device("cuda", i) for i in range(gpus)]
    return [torch.device(name)]


def pick_device(name: str) -> torch.device:
    """The first of the devices that params.yaml's `device` allows."""
    return allowed_devices(name)[0]


def wanted_devices(name: str, count: int | Literal["auto"]) -> tuple[list[torch.device], int]:
    """The devices that params.yaml's `device` allows, and how many of them `num_devices` means
    (auto: all).

    Raises InputError where this machine has too few; a CPU is shared by any number of processes.
    """
    candidates = allowed_devices(name)
    if count == "auto":
        count = len(candidates)
    if candidates[0].type != "cpu" and count > len(candidates):
        raise InputError(
            f"num_devices: got {count}, but {len(candidates)} of device {name} are visible"
        )
    return candidates, count


@contextlib.contextmanager
def claim_devices(
    name: str, count: int | Literal["auto"], *, share: bool
) -> Iterator[list[torch.device]]:
    """Hold `count` of the devices that params.yaml's `device` allows (auto: all of them), so that
    no other stage of this repository computes there; share: others may. Waits, and says so, while
    too few are free.

    Raises InputError where this machine has too few.
    """
    candidates, count = wanted_devices(name, count)
    names = [_lock_name(device) for device in candidates]
    with claim_locks(names, count=count, share=share) as places:
        yield [candidates[place] for place in places]


def _lock_name(device: torch.device) -> str | None:
    """A name of the device that does not depend on CUDA_VISIBLE_DEVICES; None where any number of
    processes may share it."""
    if device.type == "cpu":
        return None
    if device.type == "cuda":
        return f"gpu-{torch.cuda.get_device_properties(device).uuid}"
    return device.type


def uses_bf16(device: torch.device, precision: str) -> bool:
    """Whether matrix products run in bfloat16; auto asks whether the device is fast at it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


@contextlib.contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """The context in which forward passes run."""
    with contextlib.ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(sdpa_kernel(SDPA_BACKENDS))
        if uses_bf16(device, precision):
            stack.enter_context(torch.autocast(device.type, dtype=torch.bfloat16))
        yield


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process may still fill with tensors; None where the device does not say."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def device_memory(device: torch.device) -> tuple[int, int] | None:
    """Bytes that are free and all that there are, of a CPU's swap among the latter; None where it
    is not told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    known = {
        name: int(rest.split()[0]) * 1024 for name, _, rest in (x.partition(":") for x in lines)
    }
    free, total = known["MemAvailable"], known["MemTotal"] + known["SwapTotal"]
    limit = _cgroup("memory.max")
    if limit is not None:  # of a container
        free = min(free, limit - (_cgroup("memory.current") or 0))
        total = min(total, limit + known["SwapTotal"])
    return free, total


def _cgroup(name: str) -> int | None:
    """A figure of this process's control group, in its second version, where there is one."""
    try:
        return int(Path("/sys/fs/cgroup", name).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent, or "max"
        return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch raised this for want of memory; only GPUs have a type for it."""
    said = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "can't allocate memory" in said
        or "MPS backend out of memory" in said
    )


def empty_cache(device: torch.device) -> None:
    """Give what PyTorch caches back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def numeric_environment(device: torch.device, precision: str) -> dict[str, str]:
    """What of the machine decides the last digits of a result, and whether it repeats exactly."""
    kind = "bf16" if uses_bf16(device, precision) else "fp32"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else ""
    return {
        "device": f"{device.type} {name}".strip(),
        "precision": kind,
        "deterministic": str(is_deterministic(device)).lower(),
    }


def use_deterministic_algorithms() -> None:
    """Use PyTorch's deterministic algorithms from now on; an operation without one raises a
    RuntimeError, see nondeterministic_operation. Has to be called before anything computes: cuBLAS
    reads its setting once."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def nondeterministic_operation(error: RuntimeError) -> str | None:
    """The operation without a deterministic algorithm that the error is about, if it is."""
    found = re.match(r"(.+?) does not have a deterministic implementation", str(error))
    return found and found[1]


def is_deterministic(device: torch.device) -> bool:
    """Whether the same computation gives the same bytes there: GPU kernels may add in any order."""
    return device.type == "cpu" or torch.are_deterministic_algorithms_enabled()


def describe_device(device: torch.device, precision: str) -> str:
    """For a person: 'cpu, 2 threads, fp32'."""
    kind = "bf16" if uses_bf16(device, precision) else "fp32"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {kind}"
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{device.type}{threads}, {kind}"
