"""Examples of many blocks of queries: nothing is held of all tokens by all tokens, and the memory
of a token stays that of short ones. The blocks are made smaller instead of the examples longer."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from simple_llama.data.batches import collate
from simple_llama.data.tokens import Tokens
from simple_llama.model import blocks, kernels, recomputed
from simple_llama.model.compilation import compile_layers
from simple_llama.model.config import MLAConfig
from simple_llama.model.decoder import Decoder
from simple_llama.model.generation import generate
from simple_llama.training.loss import score, summed_loss
from tests.support.models import tiny_config

T = 1024
WINDOW = {"sliding_window": 175}
CAP = {"attn_logit_softcapping": 50.0}
LAYERS: dict[str, dict[str, Any]] = {
    "full": {},
    "window": WINDOW,
    "cap": CAP,
    "window and cap, some layers": {**WINDOW, **CAP, "sliding_layers": (True, False)},
    "plain formula": {"fused": False},
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (blocks, "BLOCK_QUERIES"),
        (kernels, "BLOCK_QUERIES"),
        (kernels, "MAX_KEPT_KEYS"),
        (recomputed, "MAX_QUERIES"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name) // 4)
    monkeypatch.setattr(recomputed, "MAX_SCORES", {"cpu": recomputed.MAX_SCORES["cpu"] // 16})


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation, of forward, backward and recomputed passes: the most numbers in one
    of its results, and the operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = (0, "")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, Tensor):
                # what an expanded view takes, not what it shows
                held = min(one.numel(), one.untyped_storage().nbytes() // one.element_size())
                self.seen = max(self.seen, (held, str(func)))
        return out


def example(length: int = T) -> Tokens:
    random = np.random.default_rng(0)
    mask = np.arange(length) >= length - 25
    return Tokens.from_examples([(random.integers(4, 97, length), mask)])


def model(*, fused: bool = True, **changes: Any) -> Decoder:
    one = Decoder(tiny_config(max_position_embeddings=2 * T, **changes), fused=fused)
    one.init_weights(0)
    return one


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_a_step_holds_nothing_of_all_tokens_by_all(
    layers: dict[str, Any], packing: bool, precision: torch.dtype
) -> None:
    one = model(**layers).train()
    batch = collate(example(), np.arange(1), 0, None, packing=packing)
    with Largest() as largest:
        with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
            loss = summed_loss(one, batch)
        loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in one.parameters())
    assert largest.seen[0] < T * T / 3, largest.seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "packing"),
    [("window and cap, some layers", True), ("window", False), ("plain formula", True)],
)
def test_nor_do_compiled_layers(
    layers: str, packing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through PyTorch's compiler but for the code that it writes, in one program, where there is no
    kernel for packed examples. A mask of the tokens of an example would show."""
    monkeypatch.setattr(recomputed, "MAX_SCORES", {"cpu": 2**16})
    compiler = partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", compiler)
    random, lengths = np.random.default_rng(0), (1024, 724)
    tokens = Tokens.from_examples(
        [(random.integers(4, 97, n), np.arange(n) >= n - 100) for n in lengths]
    )
    one = model(**LAYERS[layers])
    expected = gradients(one, tokens, packing=False)
    torch._dynamo.reset()
    compile_layers(one)
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        found = gradients(one, tokens, packing=packing)
    torch._dynamo.reset()
    assert all(torch.allclose(x, y, atol=2e-5) for x, y in zip(found, expected, strict=True))
    assert profile.kineto_results is not None
    events = [one for one in profile.kineto_results.events() if one.name() == "[memory]"]
    assert max(event.nbytes() for event in events) < 1024**2 * 3 / 4


def gradients(one: Decoder, tokens: Tokens, *, packing: bool) -> list[Tensor]:
    """Of the mean loss over targets."""
    one.train().zero_grad()
    batch = collate(tokens, np.arange(len(tokens)), 0, None, packing=packing)
    loss = summed_loss(one, batch) / len(batch.targets)
    loss.backward()  # type: ignore[no-untyped-call]
    return [p.grad for p in one.parameters() if p.grad is not None]


def test_nor_does_latent_attention() -> None:
    """Its values have another width than its keys, for which PyTorch's kernel for CPUs holds the
    weights: it does not say so to a dispatch mode, but saves them."""
    shape = MLAConfig(
        q_lora_rank=None,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
    )
    one = model(mla=shape, head_dim=12, num_key_value_heads=4).train()
    sizes = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    for packing in (False, True):
        batch = collate(example(), np.arange(1), 0, None, packing=packing)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            summed_loss(one, batch).backward()  # type: ignore[no-untyped-call]
    assert max(sizes) < T * T / 3


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_nor_do_validation_and_samples(layers: dict[str, Any]) -> None:
    one, tokens = model(**layers), example()
    prompt = tokens.ids[: T - 4].tolist()
    with Largest() as largest:
        score(one, tokens, np.arange(1), max_tokens=T, pad_id=0, precision="fp32")
        generate(one, [prompt, prompt[:700]], max_new_tokens=2, stop_ids=[])
    # of eight heads a block's scores are half as many
    assert largest.seen[0] < T * T, largest.seen


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_padded_prompts_by_blocks_are_computed_as_if_alone(layers: dict[str, Any]) -> None:
    one = model(**layers).eval()
    random = np.random.default_rng(1)
    prompts = [random.integers(4, 97, length).tolist() for length in (400, 150, 20)]
    settings: dict[str, Any] = {"max_new_tokens": 5, "stop_ids": []}
    together = generate(one, prompts, **settings)
    assert together == [generate(one, [prompt], **settings)[0] for prompt in prompts]


@pytest.mark.parametrize("layers", [WINDOW, CAP, {**WINDOW, **CAP}], ids=["window", "cap", "both"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_what_is_kept_of_a_token_does_not_grow(layers: dict[str, Any], checkpointed: bool) -> None:
    """Masks of blocks among it, which once were kept for each."""
    one = model(**layers).train()
    one.checkpoint_blocks = checkpointed
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    found = []
    for length in (512, 2048):
        kept.clear()
        batch = collate(example(length), np.arange(1), 0, None, packing=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = summed_loss(one, batch)
        found.append(sum(kept.values()) / length)
        assert loss.isfinite()
    assert found[1] < 1.02 * found[0]
