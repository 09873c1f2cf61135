"""Functions run by several processes as the ranks of one group."""

import dataclasses
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simple_llama.model.config import MLA, MLAConfig
from simple_llama.model.decoder import Decoder
from simple_llama.model.sharding import full_tensor, shard
from simple_llama.training.distributed import Ranks, init_process_group
from simple_llama.training.loop import train
from tests.support.models import tiny_config
from tests.support.trainings import Listener, data, params


def together(
    of: int, work: Callable[..., Any], *arguments: Any, sharded: bool = False
) -> list[Any]:
    """What `work(ranks, *arguments)` gives on each of the ranks; a failure in one is raised."""
    # forked from a server that has imported everything, each rank starts in milliseconds
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.support.trainings", "torch.distributed.fsdp", "torch.distributed.checkpoint"]
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


SETTINGS = params(
    epochs=1,
    eval_interval=3,
    sample_prompts=2,
    max_grad_norm=0.5,
    micro_batch_tokens=60,
    batch_size=5,
)


LATENT = {
    "model_type": MLA,
    "attention_bias": True,
    "num_key_value_heads": 4,
    "head_dim": 12,
    "mla": MLAConfig(
        q_lora_rank=None, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8
    ),
}


def trained(ranks: Ranks, model: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """All that one rank sees of a training."""
    settings, listener = dataclasses.replace(SETTINGS, **changes), Listener()
    decoder = Decoder(tiny_config(**(model or {})), dropout=settings.dropout)
    decoder.init_weights(0)
    if ranks.sharded:
        shard(decoder, "cpu")
    train(decoder, data(), settings, listener, ranks=ranks)
    return {
        "losses": [step.loss for step in listener.steps],
        "norms": [step.grad_norm for step in listener.steps],
        "validations": listener.validations,
        "samples": listener.samples,
        "lowerings": listener.lowerings,
        "weights": [full_tensor(parameter).detach() for parameter in decoder.parameters()],
    }


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))
