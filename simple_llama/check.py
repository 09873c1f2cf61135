"""`simple-llama check`: finds mistakes in params.yaml before a long run starts."""

import re
from pathlib import Path

from simple_llama.errors import InputError
from simple_llama.params import (
    BaseParams,
    EvaluateParams,
    ExecutionParams,
    Params,
    PrepareParams,
    TokenizeParams,
    TrainParams,
)
from simple_llama.process import LOCKS, main_root, try_lock

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
    tokenizer = [] if demo else [_check_base(base, tokens, train.lora_rank)]
    evaluation = params.section(EvaluateParams)
    if not evaluation.on_validation_split:
        _check_exists("eval_json_path", evaluation.eval_json_path)
    if train.lora_base == "nf4":
        from simple_llama.model.quantisation import require_library

        require_library()
    lines = [
        f"params.yaml: {len(params.values)} keys, all valid",
        f"data: {data}, base model: {base}",
        *tokenizer,
        f"device: {_device(train)}",
        f"runs: {_store()}",
    ]
    if not demo and DEMO_STAGE.exists():
        lines.insert(
            0,
            "note: the demo's base model is not used. Without its stage, `dvc checkout`, "
            "`dvc pull` and `dvc exp apply` do not ask for it: "
            f"git rm {DEMO_STAGE} {DEMO_STAGE.with_suffix('.lock')}",
        )
    if demo and not Path(base).exists():
        lines.append("what the run will do: known once the demo's base model is made, by dvc repro")
    else:
        from simple_llama.forecast import forecast  # tokenizes, and measures the device

        lines += forecast(params, room)
    return "\n".join(lines)


def read_size(text: str) -> int:
    """The bytes of a size such as '24GB' (10^9 each) or '24GiB' (2^30 each); also MB and MiB.

    Raises InputError where it is not a size."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?) ?([MG]i?B)", text, re.ASCII)
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


def _check_base(base: str, params: TokenizeParams, lora_rank: int) -> str:
    """Check the base model; returns the description of the tokenizer.

    Its weights must match its config, and each id of its tokenizer must have an embedding. With
    adapters, each control token must have a trained embedding, because LoRA does not train them.
    """
    from simple_llama.data.encoding import open_tokenizer
    from simple_llama.model.folder import check_fits, check_token_rows, check_weights

    check_weights(base)
    tokenizer = open_tokenizer(params)
    check_fits(base, tokenizer.vocab_size, params.max_seq_len, added_tokens=tokenizer.added_tokens)
    if lora_rank:
        check_token_rows(base, tokenizer.base_vocab_size, tokenizer.control_ids)
    return tokenizer.description


def _device(params: ExecutionParams) -> str:
    from simple_llama.model.device import (  # torch takes seconds to import
        describe_device,
        pick_device,
    )

    return describe_device(pick_device(params.device), params.precision)


def _store() -> str:
    from simple_llama.tracking.location import Location
    from simple_llama.tracking.store import check_store

    return check_store(Location.find())
