"""Base models in Hugging Face's layout, each feature against transformers, in and out."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from simple_llama.errors import InputError
from simple_llama.model.attention import KVCache
from simple_llama.model.config_json import ABSENT, config_json
from simple_llama.model.decoder import Decoder
from simple_llama.model.folder import check_fits, load_config, load_model, save_model
from tests.test_model import edit_config, logits_of, random_model, tiny_config

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 1e6}
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
    "mistral with a window": ("mistral", {"sliding_window": 128}, torch.float32),
    "qwen2": ("qwen2", {"rope_parameters": PLAIN, "tie_word_embeddings": True}, torch.bfloat16),
    "qwen3": ("qwen3", {"tie_word_embeddings": True, "head_dim": 16}, torch.bfloat16),
    "qwen3 with biases": (
        "qwen3",
        {"attention_bias": True, "head_dim": 8, "rope_parameters": LINEAR},
        torch.float32,
    ),
    "qwen2, untied": ("qwen2", {"num_key_value_heads": 1}, torch.float32),
}
PEAK = Path("/proc/self/status")
IDS = torch.randint(0, 97, (2, 120), generator=torch.Generator().manual_seed(1))


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


def their_logits(model: Any) -> Tensor:
    with torch.inference_mode():
        return model(IDS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", BASES)
def test_each_base_computes_and_is_published_as_transformers_has_it(
    name: str, tmp_path: Path
) -> None:
    import transformers

    theirs = transformers_model(*BASES[name])
    theirs.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1, "wanted a sharded checkpoint"
    # read again, because rounding a model rounds its rotary frequencies, which are no weights
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    expected = their_logits(base)

    model = load_model(tmp_path / "base").eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (logits_of(model, IDS) - expected).abs().max() < 1e-4
    assert (cached_logits(model, [7, 0]) - expected).abs().max() < 1e-4

    save_model(model, tmp_path / "published")
    published = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "published")
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


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "linear", "factor": 4.0},
        {key: value for key, value in LLAMA3.items() if key != "rope_theta"},
    ],
    ids=lambda value: str(value.get("rope_type", "linear")),
)
def test_rotary_settings_as_they_were_written_before_transformers_5(
    scaling: dict[str, Any], tmp_path: Path
) -> None:
    import transformers

    theirs = transformers_model("llama", {}, torch.float32)
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    old = config | {"rope_theta": 500.0, "rope_scaling": scaling, "torch_dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(old))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = their_logits(again)
    assert (expected - their_logits(theirs)).abs().max() > 0.1, "wanted a difference"
    assert (logits_of(load_model(tmp_path).eval(), IDS) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_keys_that_are_left_out_mean_what_they_mean_in_transformers(model_type: str) -> None:
    import transformers

    theirs = transformers.AutoConfig.for_model(model_type)
    for key, value in ABSENT[model_type].items():
        assert getattr(theirs, key) == value
    assert theirs.tie_word_embeddings is False
    assert theirs.rms_norm_eps == 1e-6
    assert theirs.rope_parameters["rope_theta"] == 10000.0


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "qwen3 with biases"])
def test_loss_and_gradients_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    import transformers

    model_type, values, _ = BASES[name]
    transformers_model(model_type, values, torch.float32).save_pretrained(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = theirs(IDS, labels=IDS).loss
    expected.backward()

    model = load_model(tmp_path)
    logits = model.logits(model(IDS))[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    assert (loss - expected).abs() < 1e-4
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    ours = dict(model.named_parameters())
    assert len(ours) == len(gradients)
    for parameter, gradient in gradients.items():
        mine = ours[parameter.removeprefix("model.")].grad
        assert mine is not None and gradient is not None, parameter
        assert (mine - gradient).abs().max() < 1e-4, parameter


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(random_model(), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gemma2"}, "model_type 'gemma2' is not supported, wanted 'llama' or 'mis"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "a mixture of experts (num_local_exp"),
        ({"model_type": "deepseek_v3", "n_routed_experts": 256}, "a mixture of experts (n_routed"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "hidden_act 'gelu_pytorch_tanh' is not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised weights (quantization_con"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is not"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope type 'yarn' is not supp"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope type 'longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "missing 'factor'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor: got 0, wanted a pos"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor: got 4.0, wanted"),
        ({"rope_scaling": "linear"}, "rope_parameters: got 'linear', wanted an object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"transformers_weights": "x.safetensors"}, "transformers_weights 'x.safetensors' is not"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window is not supp"),
        ({"model_type": "qwen3", "use_sliding_window": True}, "use_sliding_window is not supp"),
        ({"model_type": "mistral", "sliding_window": "4k"}, "sliding_window: got '4k', wanted"),
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


def mistral(folder: Path, window: int | None) -> None:
    save_model(random_model(model_type="mistral", sliding_window=window), folder)


def test_a_sliding_window_is_refused_where_it_would_hide_something(tmp_path: Path) -> None:
    for window in (None, 64, 32):
        mistral(tmp_path, window)
        assert check_fits(tmp_path, 97, 32).max_length == (window or 64)
    with pytest.raises(InputError, match=r"its sliding_window of 32 tokens is below max_seq_len"):
        check_fits(tmp_path, 97, 33)


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
        tiny_config(model_type="qwen3", qk_norm=True, attention_bias=True),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config_json(config)))
        assert load_config(tmp_path) == config


@pytest.mark.slow
@pytest.mark.skipif(not PEAK.exists(), reason="this system does not tell a process's peak memory")
def test_loading_takes_the_memory_of_one_copy(tmp_path: Path) -> None:
    wide = {"vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1408}
    model = Decoder(tiny_config(num_hidden_layers=8, head_dim=128, **wide))
    model.initialise(0)
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
