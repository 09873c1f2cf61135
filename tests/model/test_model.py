"""The decoder against transformers, its folders against transformers, cached against uncached."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from simple_llama.errors import InputError
from simple_llama.model.checkpoint import check_fits, load_config
from simple_llama.model.folder import load_model, save_model
from simple_llama.model.generation import generate
from tests.support.models import (
    STOP,
    damaged,
    edit_config,
    greedy_without_cache,
    logits_of,
    random_model,
    tiny_config,
)

VARIANTS = [
    {},
    {"num_key_value_heads": 4},
    {"num_key_value_heads": 1, "tie_word_embeddings": True},
    {"attention_bias": True, "mlp_bias": True},
    {"head_dim": 16, "rope_theta": 500000.0},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_what_is_saved_gives_the_same_logits_in_transformers(
    variant: dict[str, object], tmp_path: Path
) -> None:
    import transformers

    model = random_model(**variant)
    save_model(model, tmp_path / "saved")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert type(theirs).__name__ == "LlamaForCausalLM"
    ids = torch.randint(0, 97, (3, 20), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(ids).logits
    assert (logits_of(model, ids) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_what_transformers_saves_loads_with_the_same_logits(
    variant: dict[str, object], tmp_path: Path
) -> None:
    import transformers

    values = {k: v for k, v in vars(tiny_config(**variant)).items() if k != "rope_theta"}
    rope = {"rope_type": "default", "rope_theta": tiny_config(**variant).rope_theta}
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values, rope_parameters=rope))
    theirs.train(False)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1, "wanted a sharded checkpoint"
    ids = torch.randint(0, 97, (2, 30), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(ids).logits
    assert (logits_of(load_model(tmp_path).eval(), ids) - expected).abs().max() < 1e-4


def test_saved_equals_loaded(tmp_path: Path) -> None:
    model = random_model(tie_word_embeddings=True)
    save_model(model, tmp_path / "a")
    again = load_model(tmp_path / "a")
    assert again.lm_head.weight is again.embed_tokens.weight
    for (name, mine), (_, theirs) in zip(
        model.named_parameters(), again.named_parameters(), strict=True
    ):
        assert torch.equal(mine, theirs), name


def test_saving_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "stale.bin").write_text("old")
    save_model(random_model(), folder)
    assert not (folder / "stale.bin").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_plain_attention_equals_the_fused_kernel() -> None:
    model = random_model()
    ids = torch.randint(0, 97, (2, 25), generator=torch.Generator().manual_seed(1))
    fused = logits_of(model, ids)
    for layer in model.layers:
        layer.self_attn.fused = False  # type: ignore[union-attr]
    assert (logits_of(model, ids) - fused).abs().max() < 1e-4


def test_cached_batched_generation_equals_uncached_one_by_one() -> None:
    # a strong bias towards the stop token, so that rows end at different places
    model = random_model(tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight[STOP] *= 2.5
    generator = torch.Generator().manual_seed(2)
    prompts = [
        torch.randint(4, 97, (length,), generator=generator).tolist()
        for length in (1, 5, 9, 3, 14, 2, 7)
    ]
    replies = generate(model, prompts, max_new_tokens=12, stop_ids=[STOP])
    assert replies == [greedy_without_cache(model, prompt, 12) for prompt in prompts]
    assert len({len(reply) for reply in replies}) > 2, "rows were to end at different places"


def test_generation_ends_where_positions_end() -> None:
    model = random_model(max_position_embeddings=10)
    replies = generate(model, [[5] * 8, [6] * 3], max_new_tokens=50, stop_ids=[96])
    assert [len(reply) for reply in replies] == [2, 7], "each by its own prompt"
    assert generate(model, [[5] * 11], max_new_tokens=50, stop_ids=[96]) == [[]]


def test_sampling_uses_its_own_generator_only() -> None:
    model = random_model().train()
    before = torch.get_rng_state()

    def draw(seed: int) -> list[list[int]]:
        return generate(
            model,
            [[5, 6, 7]] * 3,
            max_new_tokens=10,
            stop_ids=[STOP],
            temperature=1.0,
            generator=torch.Generator().manual_seed(seed),
        )

    assert draw(1) == draw(1) != draw(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "mixtral"}, "model_type 'mixtral' is not supported"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope type 'dynamic'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: got 3"),
        ({"vocab_size": -1}, "vocab_size: got -1"),
        ({"intermediate_size": 40}, "has shape"),
    ],
)
def test_configs_that_cannot_be_computed_are_refused(
    changes: dict[str, object], said: str, tmp_path: Path
) -> None:
    folder = damaged(tmp_path)
    edit_config(folder, **changes)
    with pytest.raises(InputError, match=said):
        load_model(folder)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    folder = damaged(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights, wanted"):
        load_model(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match="pickled weights are not read"):
        load_model(folder)
    with pytest.raises(InputError, match="no such folder"):
        load_model(folder / "nowhere")


def test_weights_that_miss_or_have_too_much(tmp_path: Path) -> None:
    folder = damaged(tmp_path)
    state = load_file(folder / "model.safetensors")
    norm = state.pop("model.norm.weight")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"1 tensors are missing, first 'norm\.weight'"):
        load_model(folder)
    save_file(
        {**state, "model.norm.weight": norm, "extra": norm.clone()}, folder / "model.safetensors"
    )
    with pytest.raises(InputError, match="'extra' has no place"):
        load_model(folder)


@pytest.mark.parametrize("content", [b"\1", b"\xff" * 100, b"\xff\xff\xff\x7f\0\0\0\0{}"])
def test_damaged_weights(content: bytes, tmp_path: Path) -> None:
    folder = damaged(tmp_path)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="not a valid safetensors file"):
        load_model(folder)


def test_an_index_that_leads_out_of_the_folder(tmp_path: Path) -> None:
    folder = damaged(tmp_path)
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = {"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="is not a file name"):
        load_model(folder)


def test_a_vocabulary_smaller_than_the_tokenizers(tmp_path: Path) -> None:
    folder = damaged(tmp_path)
    assert check_fits(folder, 97, 64) == load_config(folder)
    with pytest.raises(InputError, match="its vocabulary has 97 entries, the tokenizer 98"):
        check_fits(folder, 98, 64)


def test_more_tokens_than_positions_is_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = damaged(tmp_path)
    check_fits(folder, 97, 64)
    assert capsys.readouterr().err == ""
    check_fits(folder, 97, 65)
    said = f"max_seq_len (65) is above what {folder} was pretrained for (64 tokens)"
    assert capsys.readouterr().err == f"warning: {said}\n"
