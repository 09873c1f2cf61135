"""Base models in Hugging Face's layout: what is refused, and what becomes of the vocabulary."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from simple_llama.errors import InputError
from simple_llama.model.checkpoint import check_fits, load_config
from simple_llama.model.config_json import config_json
from simple_llama.model.decoder import Decoder
from simple_llama.model.folder import load_model, save_model
from simple_llama.model.rope_scaling import LongRoPE
from tests.support.families import IDS, LLAMA3
from tests.support.models import edit_config, logits_of, random_model, tiny_config

GEMMA3 = {"model_type": "gemma3_text", "rope_parameters": None}
WINDOW = {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1}


def yarn(**changes: Any) -> dict[str, Any]:
    return {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, **changes}}


def longrope(**changes: Any) -> dict[str, Any]:
    scaling = {"type": "su", "short_factor": [1, 2, 3, 4], "long_factor": [1, 2, 3, 4]}
    return {"model_type": "phi3", "rope_scaling": {**scaling, **changes}}


PEAK = Path("/proc/self/status")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(random_model(), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gemma"}, "model_type 'gemma' is not supported, wanted 'llama' or 'mis"),
        ({"model_type": "gemma3"}, "model_type 'gemma3' is not supported"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "a mixture of experts (num_local_exp"),
        ({"model_type": "deepseek_v3", "n_routed_experts": 256}, "a mixture of experts (n_routed"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "hidden_act 'gelu_pytorch_tanh' is not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised weights (quantization_con"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is not"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "missing 'factor'"),
        (yarn(factor="2"), "factor: got '2', wanted a positive number"),
        (yarn(beta_fast=-1), "beta_fast: got -1, wanted a positive number"),
        (yarn(mscale="1", mscale_all_dim=1), "mscale: got '1', wanted a positive number"),
        (yarn(attention_factor=0), "attention_factor: got 0, wanted a positive number"),
        (yarn(truncate=1), "truncate: got 1, wanted true or false"),
        (yarn(original_max_position_embeddings=0.5), "original_max_position_embeddings: got 0.5"),
        (yarn(rope_theta=1.0), "rope_theta: got 1.0, wanted more than 1 with yarn"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope type 'longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "missing 'factor'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor: got 0, wanted a pos"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor: got 4.0, wanted"),
        ({"rope_scaling": "linear"}, "rope_scaling: got 'linear', wanted an object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"transformers_weights": "x.safetensors"}, "transformers_weights 'x.safetensors' is not"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2}, "layer_types: got 'sl"),
        ({"model_type": "qwen3", "layer_types": ["full"] * 2}, "layer_types: 'full' is not supp"),
        ({"model_type": "qwen3", "layer_types": ["full_attention"]}, "layer_types: got ['full_at"),
        ({"layer_types": ["sliding_attention"] * 2}, "layer_types ['sliding_attention', 'sliding"),
        ({"model_type": "mistral", "layer_types": ["full_attention"]}, "layer_types ['full_att"),
        (GEMMA3 | {"sliding_window": None}, "sliding_window: got None, wanted a positive integer"),
        (WINDOW | {"sliding_window": 0}, "sliding_window: got 0, wanted a positive integer"),
        (WINDOW | {"max_window_layers": None}, "max_window_layers: got None, wanted an integer"),
        (WINDOW | {"num_hidden_layers": -1}, "num_hidden_layers: got -1, wanted a positive int"),
        ({"model_type": "mistral", "sliding_window": "4k"}, "sliding_window: got '4k', wanted"),
        (
            {"model_type": "smollm3", "no_rope_layers": [1]},
            "no_rope_layers: got [1], wanted a list",
        ),
        ({"model_type": "smollm3", "no_rope_layers": [1, {}]}, "no_rope_layers: {} is not supp"),
        ({"model_type": "smollm3", "no_rope_layers": "11"}, "no_rope_layers: got '11', wanted a"),
        ({"model_type": "smollm3", "no_rope_layer_interval": 0}, "no_rope_layer_interval: got 0"),
        ({"model_type": "smollm3", "num_hidden_layers": 10**12}, "num_hidden_layers: got 1000000"),
        (
            {"model_type": "granite", "logits_scaling": 0},
            "logits_scaling: got 0, wanted a posi",
        ),
        ({"model_type": "granite", "attention_multiplier": "1"}, "attention_multiplier: got '1'"),
        (
            {"model_type": "phi3", "partial_rotary_factor": 0.2},
            "partial_rotary_factor: got 0.2",
        ),
        ({"model_type": "phi3", "partial_rotary_factor": "x"}, "partial_rotary_factor: got 'x'"),
        (
            {"model_type": "phi3", "partial_rotary_factor": 2},
            "partial_rotary_factor: got 2, wanted",
        ),
        ({"model_type": "phi3", "rope_scaling": LLAMA3}, "rope type 'llama3' is not supported"),
        (
            longrope() | {"original_max_position_embeddings": 1},
            "original_max_position_embeddings: got 1",
        ),
        (longrope(short_factor=[1.0]), "short_factor: got 1 factors, wanted 4"),
        (longrope(long_factor=[1, 1, 1, "1"]), "long_factor: got [1, 1, 1, '1'], wanted a list"),
        (longrope(long_factor=None), "long_factor: got None, wanted a list of positive numbers"),
        (longrope(factor=-1), "factor: got -1, wanted a positive number"),
        (GEMMA3 | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0 is not supp"),
        (GEMMA3 | {"use_bidirectional_attention": True}, "use_bidirectional_attention true is"),
        (GEMMA3 | {"hidden_activation": "gelu"}, 'hidden_activation "gelu" is not supported'),
        (GEMMA3 | {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar: got 0, wanted a positive"),
        (GEMMA3 | {"sliding_window_pattern": "6"}, "sliding_window_pattern: got '6', wanted a pos"),
        (GEMMA3 | {"final_logit_softcapping": -1}, "final_logit_softcapping: got -1, wanted a pos"),
        (GEMMA3 | {"rope_local_base_freq": "x"}, "rope_local_theta: got 'x', wanted a positive"),
        (GEMMA3 | {"rope_parameters": {"x": {}}}, "rope_parameters: 'x' is not supported"),
        (GEMMA3 | {"rope_parameters": {"sliding_attention": LLAMA3}}, "rope type 'llama3' of sl"),
        (GEMMA3 | {"hidden_size": -4}, "num_attention_heads and hidden_size must be positive"),
        ({"rope_parameters": {"full_attention": {}}}, "rope_parameters: 'full_attention' is not"),
        ({"model_type": "simple_llama_mla"}, "missing 'q_lora_rank'"),
    ],
    ids=str,
)
def test_what_is_not_computed_is_refused_in_one_line_that_names_it(
    changes: dict[str, Any], said: str, folder: Path
) -> None:
    edit_config(folder, **changes)
    with pytest.raises(InputError) as refused:
        load_model(folder)
    assert str(refused.value).startswith(f"{folder}/config.json: {said}")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.layers.0.mlp.up_proj.qweight", torch.zeros(4, 48, dtype=torch.int32)),
        ("model.layers.0.mlp.up_proj.scales", torch.zeros(1, 48, dtype=torch.float16)),
        ("model.layers.0.mlp.up_proj.weight", torch.zeros(48, 32, dtype=torch.int8)),
        ("model.layers.0.mlp.up_proj.weight", torch.zeros(48, 32, dtype=torch.float8_e4m3fn)),
    ],
    ids=["gptq", "awq", "int8", "fp8"],
)
def test_quantised_weights_are_refused_even_where_the_config_is_silent(
    name: str, tensor: Tensor, folder: Path
) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({**state, name: tensor}, folder / "model.safetensors")
    with pytest.raises(InputError, match=f"tensor '{name}' is of .*: quantised weights are not"):
        load_model(folder)


def test_longrope_is_refused_beyond_its_short_factors(tmp_path: Path) -> None:
    scaling = LongRoPE(
        short_factor=(1.0,) * 4,
        long_factor=(2.0,) * 4,
        original_max_position_embeddings=40,
        attention_factor=1.1,
    )
    save_model(random_model(model_type="phi3", rope_scaling=scaling), tmp_path)
    assert check_fits(tmp_path, 97, 40).max_length == 40
    with pytest.raises(InputError, match=r"beyond 40 tokens its longrope .* max_seq_len \(41\)"):
        check_fits(tmp_path, 97, 41)


@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_grows_only_when_asked_to(
    tied: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = random_model(tie_word_embeddings=tied)
    save_model(base, tmp_path / "base")
    with pytest.raises(InputError, match="its vocabulary has 97 entries, the tokenizer 100"):
        check_fits(tmp_path / "base", 100, 64)
    with pytest.raises(InputError, match="its vocabulary has 97 entries, the tokenizer 100"):
        check_fits(tmp_path / "base", 100, 64, added_tokens=2)
    assert capsys.readouterr().out == ""
    check_fits(tmp_path / "base", 100, 64, added_tokens=3)
    said = capsys.readouterr().out
    assert said.startswith("note: ")
    assert "grows from 97 to 100 entries" in said

    assert load_model(tmp_path / "base", vocab_size=90).config == base.config
    model = load_model(tmp_path / "base", vocab_size=100).eval()
    for grown, old in ((model.embed_tokens, base.embed_tokens), (model.lm_head, base.lm_head)):
        assert torch.equal(grown.weight[:97], old.weight)
        assert torch.allclose(grown.weight[97:], old.weight.mean(0).expand(3, -1), atol=1e-6)
    assert torch.equal(logits_of(model, IDS[:, :40])[..., :97], logits_of(base, IDS[:, :40]))
    save_model(model, tmp_path / "published")
    assert load_config(tmp_path / "published").vocab_size == 100
    assert load_model(tmp_path / "published").config == model.config


def test_a_config_is_what_is_read_of_it(tmp_path: Path) -> None:
    for config in (
        tiny_config(),
        tiny_config(model_type="qwen2", attention_bias=True),
        tiny_config(model_type="qwen3", attention_bias=True),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config_json(config)))
        assert load_config(tmp_path) == config


@pytest.mark.slow
@pytest.mark.skipif(not PEAK.exists(), reason="this system does not tell a process's peak memory")
def test_loading_takes_the_memory_of_one_copy(tmp_path: Path) -> None:
    wide = {"vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1408}
    model = Decoder(tiny_config(num_hidden_layers=8, head_dim=128, **wide))
    model.init_weights(0)
    save_model(model, tmp_path / "model")
    code = (
        "import re, sys; from simple_llama.model.folder import load_model; "
        f"peak = lambda: int(re.search(r'VmHWM:\\s*(\\d+)', open({str(PEAK)!r}).read())[1]); "
        "before = peak(); model = load_model(sys.argv[1]); print(peak() - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    size = (tmp_path / "model/model.safetensors").stat().st_size
    assert 0.9 * size < int(done.stdout) * 1024 < 1.3 * size
