"""Configs drawn at random: what `transformers` computes of them, or they are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from simple_llama.errors import InputError
from simple_llama.model.checkpoint import load_config
from simple_llama.model.config import MLA
from simple_llama.model.config_json import config_json
from simple_llama.model.decoder import Decoder
from simple_llama.model.families import FAMILIES
from simple_llama.model.folder import load_model, save_model
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

KINDS = ("full_attention", "sliding_attention")
LONGROPE = {"short_factor": [1.0, 2.0, 3.0, 4.0], "long_factor": [2.0, 3.0, 4.0, 5.0]}
ROTARY = st.sampled_from(
    [
        LINEAR,
        {"type": "linear", "factor": 3.0},
        LLAMA3,
        YARN,
        YARN | {"attention_factor": 1.2},
        YARN | {"mscale": 0.5, "mscale_all_dim": 1.5, "truncate": False, "beta_fast": 4},
        PLAIN,
        LONGROPE | {"type": "longrope", "attention_factor": 1.3},
        LONGROPE | {"type": "longrope", "factor": 3.0},
    ]
)
SANE: dict[str, st.SearchStrategy[Any]] = {
    "head_dim": st.sampled_from([4, 8, 16]),
    "num_key_value_heads": st.sampled_from([1, 2, 4]),
    "tie_word_embeddings": st.booleans(),
    "attention_bias": st.booleans(),
    "mlp_bias": st.booleans(),
    "use_sliding_window": st.booleans(),
    "sliding_window": st.sampled_from([5, 33, 200, None]),
    "max_window_layers": st.integers(0, 3),
    "layer_types": st.lists(st.sampled_from(KINDS), min_size=2, max_size=2),
    "sliding_window_pattern": st.integers(1, 3),
    "no_rope_layer_interval": st.integers(1, 3),
    "no_rope_layers": st.lists(st.integers(0, 1), min_size=2, max_size=2),
    "query_pre_attn_scalar": st.sampled_from([16, 100]),
    "attn_logit_softcapping": st.sampled_from([2.0, 5.0, None]),
    "final_logit_softcapping": st.sampled_from([2.0, 7.0, None]),
    "embedding_multiplier": st.sampled_from([0.3, 2.0]),
    "residual_multiplier": st.sampled_from([0.3, 2.0]),
    "attention_multiplier": st.sampled_from([0.1, 0.3]),
    "logits_scaling": st.sampled_from([0.3, 2.0]),
    "rms_norm_eps": st.sampled_from([1e-3, 1e-6]),
    "rope_theta": st.sampled_from([100.0, 5000.0]),
    "rope_local_base_freq": st.sampled_from([20.0, 300.0]),
    "partial_rotary_factor": st.sampled_from([0.5, 1.0]),
    "original_max_position_embeddings": st.sampled_from([64, 150]),
    "rope_scaling": ROTARY,
    "rope_parameters": ROTARY
    | st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("full_attention", "sliding_attention"), ROTARY)
    ),
}
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [
        *(None, True, False, -1, 0, 1, 3, 2**31, 10**12, 10**30, -0.5, 0.5, 1e-300, 1e308),
        *(float("nan"), float("inf"), "x", "", "full_attention", [], [1], [None], [[]], ["x"] * 2),
        *({}, {"full_attention": {}}, {"full_attention": 3, "sliding_attention": {}}),
        *({"rope_type": []}, {"rope_type": "yarn"}, {"type": "linear", "factor": 10**30}),
        {"rope_type": "yarn", "factor": 1e17, "beta_fast": 1e-300, "beta_slow": 1e17},
        {"rope_type": "longrope", "short_factor": {}, "long_factor": None},
    ]
)
FAMILY = st.sampled_from([name for name in FAMILIES if name != MLA])


def attempt(config: dict[str, Any], folder: Path) -> Any:
    """The model of `transformers`, with random weights written to the folder, or None where it
    takes no such config."""
    import transformers

    library: Any = transformers
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    (folder / "config.json").write_text(json.dumps(config))
    try:
        model = library.AutoModelForCausalLM.from_config(
            library.AutoConfig.from_pretrained(folder), attn_implementation="eager"
        ).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = 0.3 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise + ("norm" in name))
        their_logits(model)
    except Exception:  # of many kinds
        return None
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return model


@settings(max_examples=60, deadline=None, derandomize=True)
@given(family=FAMILY, data=st.data())
def test_a_drawn_config_is_what_transformers_computes_or_refused(
    tmp_path_factory: pytest.TempPathFactory, family: str, data: st.DataObject
) -> None:
    keys = data.draw(st.lists(st.sampled_from(list(SANE)), max_size=8, unique=True))
    changes = {key: data.draw(SANE[key]) for key in keys}
    folder = tmp_path_factory.mktemp("drawn")
    gemma = GEMMA if family.startswith("gemma") else {}
    theirs = attempt({**SHAPE, **gemma, "model_type": family, **changes}, folder)
    try:
        config = load_config(folder)
    except InputError as error:
        assert "\n" not in str(error)
        return
    if theirs is None or (config.max_supported_positions or 120) < 120:
        return
    model = load_model(folder).eval()
    expected = their_logits(theirs)
    most = 1e-4 * max(1.0, float(expected.abs().max()))
    assert (logits_of(model, IDS) - expected).abs().max() < most
    save_model(model, folder / "published")
    assert (their_logits(theirs_of(folder / "published")) - expected).abs().max() < most


@settings(max_examples=400, deadline=None, derandomize=True)
@given(family=FAMILY, data=st.data())
def test_an_odd_config_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, family: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    keys = st.sampled_from([*SHAPE, *SANE])
    changes = data.draw(st.dictionaries(keys, ODD, min_size=1, max_size=3))
    config = {**SHAPE, "model_type": family, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    try:
        read = load_config(folder)
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 700
        return
    json.dumps(config_json(read))
    if read.num_hidden_layers < 10:
        with torch.device("meta"):
            Decoder(read)
