"""What `python -m benchmarks.gpu` measures beside the pipeline; each in a process of its own, which
prints its figures as one line of JSON: python -m benchmarks.gpu.contestants '{"job": "train", ...}'
"""

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import bench_evaluation, bench_training, textbook, trl_peer, workload
from benchmarks.workload import STEP_EXAMPLES, Step
from simple_llama.data.batches import MicroBatch
from simple_llama.data.tokens import Tokens
from simple_llama.model import decoding
from simple_llama.model.device import autocast
from simple_llama.model.generation import generate
from simple_llama.params.reading import Params
from simple_llama.params.train import TrainParams
from simple_llama.training.loop import train
from simple_llama.training.loss import summed_loss
from simple_llama.training.preflight import Preflight
from simple_llama.training.state import TrainingData

WARM_UP = 2
"""Steps that are not counted."""
OURS: dict[str, dict[str, Any]] = {
    "ours": {"enable_compilation": True},
    "ours, not compiled": {"enable_compilation": False},
    "ours, as CUDA graphs": {"enable_compilation": True, "cuda_graphs": True},
    "ours, padded": {"enable_compilation": True, "packing": False},
    "ours, blocks computed twice": {
        "enable_compilation": True,
        "activation_checkpointing": "blocks",
    },
}
"""With micro_batch_tokens: auto."""
TEXTBOOK, TRL, LIGER = "textbook", "TRL, 1 x 32", "TRL with Liger, 1 x 32"
PLAIN = "whole logits"
STATIC = "transformers, static cache"
NO_GRAPH = "ours, kernel by kernel"


class Listener(bench_training.Listener):
    preflight: Preflight

    def on_preflight(self, preflight: Preflight) -> None:
        self.preflight = preflight


def training(who: str, device: str, shape: str, steps: int) -> dict[str, Any]:
    """Real tokens a second, seconds until the first step, losses."""
    began = time.perf_counter()
    note, model = "", workload.SHAPES[shape]
    if who in OURS:
        measured, note = ours(device, shape, steps, OURS[who])
    elif who == TEXTBOOK:
        measured = textbook.train(steps, 0.0, model, device)
    else:
        liger = who == LIGER
        measured = trl_peer.train(steps, model, device, bf16=True, accumulate=1, liger=liger)
    [examples] = workload.steps(1)
    counted = measured[WARM_UP:]
    return {
        "tokens a second": statistics.median(step.speed for step in counted),
        "until steady": time.perf_counter() - began - sum(step.seconds for step in counted),
        "flops a token": workload.flops(examples, model)
        / int(workload.tokens().lengths[examples].sum()),
        "loss": measured[-1].loss,
        "note": note,
    }


def ours(device: str, shape: str, steps: int, changes: dict[str, Any]) -> tuple[list[Step], str]:
    """The steps, and how they were computed."""
    tokens = workload.tokens()
    if device == "cpu":
        changes = {**changes, "enable_compilation": False, "cuda_graphs": False}
    values: dict[str, Any] = {
        "device": device,
        "batch_size": STEP_EXAMPLES,
        "grad_accum_steps": 1,
        "epochs": 1,
        "max_steps": steps,
        "max_seq_len": 1024,
        "max_lr": 1e-3,
        "lr_schedule": "constant",
        "warmup_iterations": 0,
        "eval_interval": 0,
        "sample_prompts": 0,
        "micro_batch_tokens": "auto",
    }
    params = replace(Params().section(TrainParams), **{**values, **changes})
    few = Tokens.from_examples([([2, 3, 4, 5], [0, 0, 1, 1])])
    data = TrainingData(train=tokens, val=few, pad_id=workload.PAD_ID, stop_ids=[1])
    listener: Any = Listener()
    train(workload.new_model(0.0, workload.SHAPES[shape], device), data, params, listener)
    return listener.steps, f"{listener.preflight.micro_batch_tokens:,} tokens at once"


def generation(who: str, device: str, shape: str, prompts: int, new: int) -> dict[str, Any]:
    """New tokens a second, greedily, after prompts of about 100 tokens, and the last tokens."""
    replies: list[list[int]] = []
    model = workload.new_model(0.0, workload.SHAPES[shape], device).eval()
    asked = bench_evaluation.make_prompts(model, prompts, 100)
    if who == STATIC:
        theirs = trl_peer.as_transformers(model, device, torch.bfloat16).eval()
        longest = max(map(len, asked))
        pads = [[0] * (longest - len(prompt)) for prompt in asked]
        ids = torch.tensor([[*pad, *prompt] for pad, prompt in zip(pads, asked)], device=device)
        mask = torch.tensor([[0] * len(pad) + [1] * (longest - len(pad)) for pad in pads])

        def answer() -> None:
            found = theirs.generate(
                ids,
                attention_mask=mask.to(device),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
                cache_implementation="static",
            )
            replies[:] = found[:, -new:].tolist()
    else:
        if who == NO_GRAPH:
            decoding.CAPTURED_FROM = sys.maxsize

        def answer() -> None:
            with autocast(torch.device(device), "auto"):
                replies[:] = generate(model, asked, max_new_tokens=new, stop_ids=[])

    seconds = best_of(answer, device)
    return {"tokens a second": prompts * new / seconds, "replies": replies}


class Head(nn.Module):
    """What summed_loss needs of a model: hidden states, and the projection."""

    def __init__(self, positions: int, width: int, vocabulary: int) -> None:
        super().__init__()
        self.config = workload.SHAPE  # nothing of it but that the logits are as they are
        self.hidden = nn.Parameter(torch.randn(1, positions, width))
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor, *, packed: object) -> Tensor:
        return self.hidden


def vocabulary(who: str, device: str, positions: int, width: int, entries: int) -> dict[str, Any]:
    """Seconds and bytes of the loss and its gradient, beyond weights and gradients."""
    with torch.device(device):
        torch.manual_seed(0)
        head: Any = Head(positions, width, entries)
        places = torch.arange(positions)
        targets = torch.randint(0, entries, (positions,))
    batch = MicroBatch(
        ids=places[None],
        positions=places,
        targets=targets,
        example_index=np.zeros(0, np.int64),
        examples=np.zeros(0, np.int64),
        longest=positions,
        offsets=None,
    )
    fused: Any = None
    if who == "Liger":
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        fused = LigerFusedLinearCrossEntropyLoss(reduction="sum")

    def loss() -> Tensor:
        if who == "ours":
            return summed_loss(head, batch)
        if fused is not None:
            half: list[Tensor] = [x.bfloat16() for x in (head.lm_head.weight, head.hidden[0])]
            return fused(*half, targets)  # type: ignore[no-any-return]
        return F.cross_entropy(head.lm_head(head.hidden[0]).float(), targets, reduction="sum")

    def compute() -> None:
        head.zero_grad(set_to_none=True)
        with autocast(torch.device(device), "auto"):
            total = loss()
        total.backward()  # type: ignore[no-untyped-call]

    held = 2 * sum(parameter.nbytes for parameter in head.parameters())
    before = bench_training.peak_memory(device) if device == "cpu" else 0
    seconds = best_of(compute, device)
    peak = bench_training.peak_memory(device)
    return {"seconds": seconds, "bytes": peak - (before if device == "cpu" else held)}


def matmul(device: str) -> dict[str, Any]:
    """FLOP/s of a bf16 product, and what computes it."""
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {"flops": bench_training.matmul_peak(device), "card": name}


def best_of(work: Callable[[], object], device: str, tries: int = 3) -> float:
    """Seconds, of the fastest try after a first one."""
    seconds = []
    for _ in range(tries + 1):
        workload.finish(device)
        begin = time.perf_counter()
        work()
        workload.finish(device)
        seconds.append(time.perf_counter() - begin)
    return min(seconds[1:])


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "training": training,
    "generation": generation,
    "vocabulary": vocabulary,
    "matmul": matmul,
}


def main() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)
    asked = json.loads(sys.argv[1])
    figures = JOBS[asked.pop("job")](**asked)
    peak = bench_training.peak_memory(asked["device"])
    print(json.dumps({"peak": peak, **figures}))


if __name__ == "__main__":
    main()
