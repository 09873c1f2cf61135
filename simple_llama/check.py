"""`simple-llama check`: finds mistakes in params.yaml before a long run starts."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from simple_llama.errors import InputError
from simple_llama.params.base import BaseParams
from simple_llama.params.evaluate import EvaluateParams
from simple_llama.params.prepare import PrepareParams
from simple_llama.params.reading import Params
from simple_llama.params.tokenize import TokenizeParams
from simple_llama.params.train import TrainParams
from simple_llama.process import LOCKS, main_root, try_lock

if TYPE_CHECKING:
    import torch

    from simple_llama.training.estimate import Device
    from simple_llama.training.requirements import Requirements

DEMO_BASE = Path("models/demo/base")
"""A stage makes it, so it may not exist before the first run."""
DEMO_STAGE = Path("models/demo/dvc.yaml")
SIZES = {"MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30}


def check(memory: str | None = None) -> str:
    """Check the params, paths, base model, device and store; returns lines for the user.

    memory: plan for a device with this memory, such as '24GB'. Raises InputError where something is
    wrong.
    """
    room = None if memory is None else read_size(memory)
    params = Params()
    with try_lock(main_root() / LOCKS / "check.lock"):
        pass  # raises InputError if the file system does not support locks
    train = params.section(TrainParams)
    data = params.section(PrepareParams).ft_json_path
    _check_exists("ft_json_path", data)
    base = params.section(BaseParams).model_path
    tokens = params.section(TokenizeParams)
    paths = Path(base), Path(tokens.tokenizer_path)
    demo = all(path.is_relative_to(DEMO_BASE) for path in paths)
    missing = demo and not all(path.exists() for path in paths)
    evaluation = params.section(EvaluateParams)
    if not evaluation.on_validation_split:
        _check_exists("eval_json_path", evaluation.eval_json_path)
    place = _place(train, room)
    wanted, said = (None, []) if missing else _check_base(base, tokens, train, place)
    lines = [
        f"params.yaml: {len(params.values)} keys, all valid",
        f"data: {data}, base model: {base}",
        *said,
        f"device: {place.description}" + (f", {place.ranks} of them" if place.ranks > 1 else ""),
        f"runs: {_store()}",
    ]
    if not demo and DEMO_STAGE.exists():
        lines.insert(
            0,
            "note: the demo's base model is not used. Without its stage, `dvc checkout`, "
            "`dvc pull` and `dvc exp apply` do not ask for it: "
            f"git rm {DEMO_STAGE} {DEMO_STAGE.with_suffix('.lock')}",
        )
    if wanted is None:
        lines.append("what the run will do: known once the demo's base model is made, by dvc repro")
    else:
        from simple_llama.forecast import forecast  # tokenizes, and measures the device

        lines += forecast(params, wanted, place.ranks, place.here)
    return "\n".join(lines)


def read_size(text: str) -> int:
    """The bytes of a size such as '24GB' (10^9 each) or '24GiB' (2^30 each); also MB and MiB.

    Raises InputError where it is not a size."""
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,3})?) ?([MG]i?B)", text, re.ASCII)
    count = float(found[1]) * SIZES[found[2]] if found else 0
    if not count:
        raise InputError(
            f"--memory: got {text!r}, wanted a size such as 24GB (24 times 10^9 bytes) or 24GiB "
            "(24 times 2^30)"
        )
    return int(count)


def _check_exists(key: str, path: str) -> None:
    if not Path(path).exists():
        raise InputError(f"params.yaml: {key}: {path} does not exist")


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where the training is planned to run."""

    device: "Device"
    ranks: int
    here: "torch.device | None"
    """Of this machine; None: with --memory."""
    description: str


def _place(params: TrainParams, room: int | None) -> _Place:
    """Raises InputError where this machine has no such devices, unless others are imagined."""
    from simple_llama.model.device import (  # torch takes seconds to import
        describe_device,
        wanted_devices,
    )
    from simple_llama.training.estimate import Device, size

    if room is not None:
        device = Device.imagined(room, params)
        return _Place(
            device=device,
            ranks=1 if params.num_devices == "auto" else params.num_devices,
            here=None,
            description=f"{device.kind} with {size(room)} (--memory), instead of this machine's",
        )
    devices, ranks = wanted_devices(params.device, params.num_devices)
    return _Place(
        device=Device.real(devices[0], params),
        ranks=ranks,
        here=devices[0],
        description=describe_device(devices[0], params.precision),
    )


def _check_base(
    base: str, tokens: TokenizeParams, train: TrainParams, place: _Place
) -> "tuple[Requirements, list[str]]":
    """Check the base model as train will, and its weights, where there are any, against its config;
    with lines about the tokenizer and the weights."""
    from simple_llama.data.encoding import open_tokenizer
    from simple_llama.model.checkpoint import check_weights
    from simple_llama.model.weights import lacks_weights
    from simple_llama.training.requirements import Requirements

    absent = lacks_weights(base)
    if not absent:
        check_weights(base)
    tokenizer = open_tokenizer(tokens)
    wanted = Requirements.of(base, tokenizer, train, place.device, without_weights=True)
    if place.here is None:
        wanted.check_settings(train)  # what is installed here says nothing of elsewhere
    else:
        wanted.check(train)
    note = f"note: {base} has no weights yet, which train needs: all is by its config.json alone"
    return wanted, [tokenizer.description, *([note] if absent else [])]


def _store() -> str:
    from simple_llama.tracking.location import Location
    from simple_llama.tracking.store import check_store

    return check_store(Location.find())
