"""Every family that loads, in every arrangement that its config allows, against transformers: what
it computes, how it learns, what it says, and what is published."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simple_llama.data.batches import collate
from simple_llama.data.tokens import Tokens
from simple_llama.model import blocks
from simple_llama.model.attention import KVCache
from simple_llama.model.checkpoint import load_config
from simple_llama.model.config import MLA, ModelConfig
from simple_llama.model.decoder import Decoder
from simple_llama.model.families import FAMILIES
from simple_llama.model.folder import load_model, save_model
from simple_llama.model.generation import generate
from simple_llama.model.lora import (
    LoraConfig,
    adapter_parameters,
    add_adapters,
    merge_adapters,
    save_adapter,
)
from simple_llama.training import loss as loss_module
from simple_llama.training.distributed import SINGLE_PROCESS, Ranks
from simple_llama.training.loss import summed_loss
from tests.support.families import (
    GEMMA,
    IDS,
    LINEAR,
    LLAMA3,
    PLAIN,
    SHAPE,
    YARN,
    their_logits,
    theirs_of,
)
from tests.support.models import logits_of
from tests.support.ranks import distance, together, trained
from tests.support.trainings import PAD

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 900.0,
    "short_factor": [1.0, 1.5, 2.0, 4.0],
    "long_factor": [1.0, 3.0, 9.0, 30.0],
}
BASES: dict[str, tuple[str, dict[str, Any], torch.dtype]] = {
    "llama": ("llama", {}, torch.float32),
    "llama with every bias": ("llama", {"attention_bias": True, "mlp_bias": True}, torch.float32),
    "llama 3.2": (
        "llama",
        {"rope_parameters": LLAMA3, "tie_word_embeddings": True, "head_dim": 16},
        torch.bfloat16,
    ),
    "llama, linear scaling": ("llama", {"rope_parameters": LINEAR}, torch.float16),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 16}, torch.bfloat16),
    "mistral with a window": ("mistral", {"sliding_window": 40}, torch.float32),
    "qwen2": ("qwen2", {"rope_parameters": PLAIN, "tie_word_embeddings": True}, torch.bfloat16),
    "llama, yarn in full": (
        "llama",
        {
            "rope_parameters": {
                **YARN,
                "beta_fast": 5.0,
                "beta_slow": 1.5,
                "mscale": 0.7,
                "mscale_all_dim": 1.2,
                "truncate": False,
            },
            "head_dim": 16,
        },
        torch.float32,
    ),
    "qwen3, yarn": ("qwen3", {"rope_parameters": YARN, "head_dim": 16}, torch.float32),
    "qwen2, untied": ("qwen2", {"num_key_value_heads": 1}, torch.float32),
    "qwen3": ("qwen3", {"tie_word_embeddings": True, "head_dim": 16}, torch.bfloat16),
    "qwen3 with biases": (
        "qwen3",
        {"attention_bias": True, "head_dim": 8, "rope_parameters": LINEAR},
        torch.float32,
    ),
    "qwen2 with windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
        torch.float32,
    ),
    "qwen3 with windows": (
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 33,
            "head_dim": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        torch.bfloat16,
    ),
    "smollm3": (
        "smollm3",
        {"no_rope_layer_interval": 2, "tie_word_embeddings": True, "rope_parameters": PLAIN},
        torch.bfloat16,
    ),
    "smollm3 with biases": (
        "smollm3",
        {"no_rope_layers": [0, 1, 1], "attention_bias": True, "mlp_bias": True},
        torch.float32,
    ),
    "smollm3 with windows": (
        "smollm3",
        {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 20},
        torch.float32,
    ),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 12,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.015625,
            "logits_scaling": 8.0,
            "tie_word_embeddings": True,
        },
        torch.bfloat16,
    ),
    "granite with biases, few multipliers": (
        "granite",
        {"attention_bias": True, "mlp_bias": True, "residual_multiplier": 0.5},
        torch.float32,
    ),
    "olmo2": ("olmo2", {"rope_parameters": PLAIN}, torch.bfloat16),
    "olmo2 with biases": (
        "olmo2",
        {"attention_bias": True, "num_key_value_heads": 4, "tie_word_embeddings": True},
        torch.float32,
    ),
    "phi3": ("phi3", {"sliding_window": 50}, torch.bfloat16),
    "phi3 with a part rotated": (
        "phi3",
        {
            "rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5},
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
        },
        torch.float32,
    ),
    "phi3 with longrope": (
        "phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 140},
        torch.float32,
    ),
    "gemma2": (
        "gemma2",
        {
            **GEMMA,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "tie_word_embeddings": True,
        },
        torch.bfloat16,
    ),
    "gemma2 without caps": (
        "gemma2",
        {
            **GEMMA,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "attention_bias": True,
            "layer_types": ["full_attention", "sliding_attention"],
        },
        torch.float32,
    ),
    "gemma3": (
        "gemma3_text",
        {
            **GEMMA,
            "sliding_window_pattern": 2,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "full_attention": LINEAR,
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        },
        torch.bfloat16,
    ),
    "gemma3 with a cap": (
        "gemma3_text",
        {
            **GEMMA,
            "final_logit_softcapping": 2.0,
            "attention_bias": True,
            "layer_types": ["full_attention", "sliding_attention"],
        },
        torch.float32,
    ),
}
"""Of each: model_type, config, dtype of the checkpoint."""
LENGTHS = (120, 9, 61, 33)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which IDS has several, the last one not full."""
    monkeypatch.setattr(blocks, "BLOCK_QUERIES", 32)


def transformers_model(model_type: str, values: dict[str, Any], dtype: torch.dtype) -> Any:
    """Random weights in dtype, biases included."""
    import transformers

    config = transformers.AutoConfig.for_model(model_type, **{**SHAPE, **values})
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)  # type: ignore[no-untyped-call]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.3 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise + ("norm" in name))
    return model.train(False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sharded checkpoint of each of BASES, as `transformers` writes it."""
    root = tmp_path_factory.mktemp("bases")
    for place, base in enumerate(BASES.values()):
        transformers_model(*base).save_pretrained(root / str(place), max_shard_size="20KB")
    return {name: root / str(place) for place, name in enumerate(BASES)}


@pytest.mark.parametrize("name", BASES)
def test_each_base_computes_and_is_published_as_transformers_has_it(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = folders[name]
    assert len(list(folder.glob("*.safetensors"))) > 1, "wanted a sharded checkpoint"
    theirs = theirs_of(folder)
    expected = their_logits(theirs)

    model = load_model(folder).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (logits_of(model, IDS) - expected).abs().max() < 1e-4
    assert (cached_logits(model, [7, 0]) - expected).abs().max() < 1e-4
    for layer in model.layers:
        layer.self_attn.fused = False  # type: ignore[union-attr]
    assert (logits_of(model, IDS) - expected).abs().max() < 1e-4
    assert (cached_logits(model, [7, 0]) - expected).abs().max() < 1e-4

    save_model(model, tmp_path / "published")
    published = theirs_of(tmp_path / "published")
    assert type(published) is type(theirs)
    assert (their_logits(published) - expected).abs().max() < 1e-4
    assert load_config(tmp_path / "published") == model.config


def cached_logits(model: Decoder, padding: Sequence[int]) -> Tensor:
    """Of IDS, padded on the left so far, computed in pieces of several lengths."""
    longest = max(padding)
    ids = torch.zeros(len(IDS), longest + IDS.shape[1], dtype=torch.long)
    for row, pad in enumerate(padding):
        ids[row, longest : longest + IDS.shape[1]] = IDS[row]
        ids[row] = ids[row].roll(pad - longest)
    cache = KVCache(torch.tensor(padding), ids.shape[1])
    with torch.inference_mode():
        pieces = [
            model.logits(model(piece, cache)) for piece in ids.tensor_split((50, 51, 52, 112), 1)
        ]
    logits = torch.cat(pieces, dim=1)
    return torch.stack([logits[row, pad : pad + IDS.shape[1]] for row, pad in enumerate(padding)])


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name != MLA])
def test_keys_that_are_left_out_mean_what_they_mean_in_transformers(
    model_type: str, tmp_path: Path
) -> None:
    """A config of the sizes only against one in which `transformers` filled in the rest."""
    import transformers

    named = {
        "hidden_size": 256,
        "num_attention_heads": 64,
        "vocab_size": 7,
        "intermediate_size": 3,
        "num_hidden_layers": 9,
    }
    theirs = transformers.AutoConfig.for_model(model_type, **named).to_dict()
    read = []
    for config in (theirs, {"model_type": model_type, **named}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        read.append(load_config(tmp_path))
    assert read[0] == read[1]
    for key, value in FAMILIES[model_type].absent.items():
        assert theirs.get(key, value) == value


def batches_of(rows: Sequence[Tensor], *, packed: bool) -> Any:
    """The rows as one batch in which every token but the first is supervised."""
    pairs = [(row.tolist(), [0] + [1] * (len(row) - 1)) for row in rows]
    return collate(Tokens.from_examples(pairs), np.arange(len(rows)), PAD, None, packing=packed)


def loss_and_gradients(model: Decoder, rows: Sequence[Tensor], *, packed: bool) -> list[Tensor]:
    batch = batches_of(rows, packed=packed)
    loss = summed_loss(model, batch) / len(batch.targets)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("name", BASES)
def test_loss_and_gradients_are_those_of_transformers(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = theirs_of(folders[name])
    loss = theirs(IDS, labels=IDS).loss
    loss.backward()
    gradients = {name.removeprefix("model."): p.grad for name, p in theirs.named_parameters()}

    model = load_model(folders[name])
    names = [name for name, _ in model.named_parameters()]
    assert sorted(names) == sorted(gradients)
    expected = [loss.detach(), *(gradients[name] for name in names)]
    for packed in (False, True):
        assert distance(loss_and_gradients(model, list(IDS), packed=packed), expected) < 1e-4
    monkeypatch.setattr(loss_module, "MAX_LOGITS", 97 * 50)
    assert distance(loss_and_gradients(model, list(IDS), packed=True), expected) < 1e-4


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("fused", [True, False])
def test_packed_is_padded(name: str, fused: bool, folders: dict[str, Path]) -> None:
    model = load_model(folders[name], fused=fused)
    rows = [IDS[0, :length] for length in LENGTHS]
    padded = loss_and_gradients(model, rows, packed=False)
    assert distance(loss_and_gradients(model, rows, packed=True), padded) < 1e-4
    model.checkpoint_blocks = True
    assert distance(loss_and_gradients(model, rows, packed=True), padded) < 1e-4


@pytest.mark.parametrize("name", BASES)
def test_greedy_replies_are_those_of_transformers(name: str, folders: dict[str, Path]) -> None:
    theirs, model = theirs_of(folders[name]), load_model(folders[name])
    prompts = [IDS[0, :length].tolist() for length in LENGTHS]
    replies = generate(model, prompts, max_new_tokens=12, stop_ids=())
    for prompt, reply in zip(prompts, replies, strict=True):
        said = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert reply == said[0, len(prompt) :].tolist()


def adapted(folder: Path) -> tuple[Decoder, LoraConfig]:
    """The model with adapters on every projection of its layers, none of them zero."""
    model = load_model(folder)
    names = {
        name.rsplit(".", 1)[1]
        for name, module in model.layers.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    lora = LoraConfig(rank=2, alpha=4.0, dropout=0.0, targets=tuple(sorted(names)))
    add_adapters(model, lora, seed=0)
    generator = torch.Generator().manual_seed(2)
    for parameter in adapter_parameters(model).values():
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval(), lora


@pytest.mark.parametrize("name", BASES)
def test_adapters_merge_into_what_they_computed(name: str, folders: dict[str, Path]) -> None:
    model, _ = adapted(folders[name])
    expected = logits_of(model, IDS)
    assert (expected - logits_of(load_model(folders[name]), IDS)).abs().max() > 0.1
    merge_adapters(model)
    assert (logits_of(model, IDS) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("name", BASES)
def test_adapters_load_in_peft(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    import peft

    model, lora = adapted(folders[name])
    save_adapter(model, tmp_path / "adapter", lora, str(folders[name]))
    theirs = peft.PeftModel.from_pretrained(theirs_of(folders[name]), tmp_path / "adapter").eval()
    expected = their_logits(theirs)
    assert (logits_of(model, IDS) - expected).abs().max() < 1e-4 * expected.abs().max()


def of_each(ranks: Ranks, configs: list[ModelConfig]) -> list[dict[str, Any]]:
    return [trained(ranks, model=vars(config), packing=True) for config in configs]


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_ranks_train_what_one_trains(sharded: bool, folders: dict[str, Path]) -> None:
    configs = [load_config(folder) for folder in folders.values()]
    expected = of_each(SINGLE_PROCESS, configs)
    for rank in together(2, of_each, configs, sharded=sharded):
        for mine, theirs in zip(rank, expected, strict=True):
            assert mine["losses"] == pytest.approx(theirs["losses"], abs=1e-5)
            assert mine["samples"] == theirs["samples"]
            assert distance(mine["weights"], theirs["weights"]) < 1e-4


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "linear", "factor": 4.0},
        {key: value for key, value in LLAMA3.items() if key != "rope_theta"},
    ],
    ids=lambda value: str(value.get("rope_type", "linear")),
)
def test_rotary_settings_as_they_were_written_before_transformers_5(
    scaling: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    theirs = theirs_of(folders["llama"])
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    old = config | {"rope_theta": 500.0, "rope_scaling": scaling, "torch_dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(old))
    expected = their_logits(theirs_of(tmp_path))
    assert (expected - their_logits(theirs)).abs().max() > 0.1, "wanted a difference"
    assert (logits_of(load_model(tmp_path).eval(), IDS) - expected).abs().max() < 1e-4
