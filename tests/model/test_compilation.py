"""Compiled layers train as written ones do, and are compiled once, however many and of whatever
length: counted by PyTorch's own counters."""

import shutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from simple_llama.data.batches import collate
from simple_llama.model.compilation import compile_layers
from simple_llama.model.decoder import Decoder
from simple_llama.model.lora import LoraConfig, add_adapters
from simple_llama.training.distributed import SINGLE_PROCESS, Ranks
from simple_llama.training.loss import score, summed_loss
from tests.support.models import tiny_config
from tests.support.ranks import LATENT, distance, together, trained
from tests.support.trainings import PAD, examples, params, run

COMPILE = torch.compile


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Chooses another of PyTorch's backends than that which calls a compiler."""

    def chosen(name: str) -> None:
        def through(function: Any, **settings: Any) -> Any:
            return COMPILE(function, **settings, backend=name, fullgraph=True)

        monkeypatch.setattr(torch, "compile", through)

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    chosen("eager")
    yield chosen
    torch._dynamo.reset()


def compiled_graphs() -> int:
    """So far; also asserts that nothing was left to Python in between."""
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["frames"]["total"] == counters["frames"]["ok"]
    return int(counters["stats"]["unique_graphs"])


def of_many_lengths(model: Decoder, packing: bool) -> None:
    """Forward and backward passes over micro-batches of 1 to 20 examples."""
    tokens = examples(40)
    for first, count in enumerate([20, 3, 5, 2, 7, 1, 11]):
        chosen = np.arange(first, first + count)
        loss = summed_loss(model, collate(tokens, chosen, PAD, None, packing=packing))
        loss.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("variant", "recompute"),
    [
        ({}, False),
        ({}, True),
        (LATENT, False),
        ({"model_type": "mistral", "sliding_window": 8}, True),
    ],
    ids=["grouped", "grouped, recomputed", "mla", "window, recomputed"],
)
def test_each_kind_of_layer_is_compiled_once(
    variant: dict[str, Any], recompute: bool, backend: Callable[[str], None]
) -> None:
    model = Decoder(tiny_config(num_hidden_layers=4, **variant), dropout=0.1).train()
    model.init_weights(0)
    model.checkpoint_blocks = recompute
    compile_layers(model)
    of_many_lengths(model, packing=True)
    assert compiled_graphs() == 1
    of_many_lengths(model, packing=False)
    assert compiled_graphs() == 3, "padded, one row or several"
    score(model, examples(9), np.arange(9), max_tokens=60, pad_id=PAD, precision="fp32")
    assert compiled_graphs() == 3, "validation is computed as written"


def test_layers_of_two_kinds_are_two_programs(backend: Callable[[str], None]) -> None:
    kinds = {"sliding_window": 9, "sliding_layers": (True, False, False)}
    model = Decoder(tiny_config(model_type="gemma2", num_hidden_layers=3, **kinds)).train()
    model.init_weights(0)
    compile_layers(model)
    of_many_lengths(model, packing=True)
    assert compiled_graphs() == 2


def test_adapters_add_the_layer_whose_input_has_no_gradient(
    backend: Callable[[str], None],
) -> None:
    model = Decoder(tiny_config(num_hidden_layers=3)).train()
    add_adapters(
        model, LoraConfig(rank=2, alpha=4.0, dropout=0.1, targets=("q_proj", "up_proj")), seed=0
    )
    compile_layers(model)
    of_many_lengths(model, packing=True)
    assert compiled_graphs() == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"packing": False},
        {"packing": True, "activation_checkpointing": "blocks"},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_a_compiled_model_trains_alike(
    changes: dict[str, Any], backend: Callable[[str], None]
) -> None:
    """Without a warning. Recorded, not raised: PyTorch tries a gradient that is none on what enters
    a layer, and hides the warning about it where it would be shown."""
    backend("aot_eager")
    settings = {"epochs": 1, "micro_batch_tokens": 60, **changes}
    with warnings.catch_warnings(record=True) as warned:
        compiled, heard, _ = run(params(enable_compilation=True, **settings))
    assert not [one for one in warned if "enable_compilation" in str(one.message)]
    plain, listener, _ = run(params(**settings))
    most = 1e-4 if settings.get("precision") != "bf16" else 2e-2
    assert [step.loss for step in heard.steps] == pytest.approx(
        [step.loss for step in listener.steps], abs=most
    )
    weights = [[p.detach() for p in model.parameters()] for model in (compiled, plain)]
    assert distance(*weights) < most
    assert compiled_graphs() <= 2


def test_compilation_that_fails_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_(function: Any, **_: object) -> object:
        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("no compiler\nsecond line")

        return broken

    monkeypatch.setattr(torch, "compile", compile_)
    with pytest.warns(
        UserWarning, match="going on without it: RuntimeError: no compiler"
    ) as warned:
        model, _, _ = run(params(enable_compilation=True))
    assert len(warned) == 1
    plain, _, _ = run(params())
    for mine, theirs in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def compiled_ways(ranks: Ranks) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda f, **_: COMPILE(f, backend="eager", dynamic=True))
        seen = trained(ranks, packing=True, enable_compilation=True)
    return {**seen, "graphs": compiled_graphs()}


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_ranks_compile_too(sharded: bool) -> None:
    """Among them ranks without work, and layers whose weights are gathered around them."""
    expected = trained(SINGLE_PROCESS)
    for rank in together(3, compiled_ways, sharded=sharded):
        assert rank["graphs"] == 1
        assert rank["losses"] == pytest.approx(expected["losses"], abs=1e-5)
        assert distance(rank["weights"], expected["weights"]) < 1e-4


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="PyTorch compiles for a CPU through g++")
def test_through_the_real_compiler() -> None:
    torch._dynamo.reset()
    settings = {"epochs": 1, "micro_batch_tokens": 60, "packing": True}
    with warnings.catch_warnings(record=True) as warned:
        compiled, _, _ = run(params(enable_compilation=True, **settings))
    assert not [one for one in warned if "enable_compilation" in str(one.message)]
    plain, _, _ = run(params(**settings))
    weights = [[p.detach() for p in model.parameters()] for model in (compiled, plain)]
    assert 0 < distance(*weights) < 1e-4
