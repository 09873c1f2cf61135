"""Folders as people have them, whole and odd: what `transformers` computes, or a name."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from simple_llama.check import check
from simple_llama.errors import InputError
from simple_llama.evaluation.one_model import evaluate_file
from simple_llama.inference.export import export
from simple_llama.inference.replies import load_replier
from simple_llama.model.checkpoint import check_weights, load_config
from simple_llama.model.decoder import Decoder
from simple_llama.model.folder import load_model, save_model
from simple_llama.model.weights import check_range
from tests.support.hostile import STAND_INS
from tests.support.models import edit_config, logits_of, random_model
from tests.support.project import ROOT, Project

IDS = torch.arange(24).view(2, 12)
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
SHARDS = ("a.safetensors", "b.safetensors", "c.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(random_model(), tmp_path / "model")
    return tmp_path / "model"


def weights_of(folder: Path) -> Path:
    return folder / "model.safetensors"


def refusal(attempt: Callable[[], object]) -> str:
    with pytest.raises(InputError) as refused:
        attempt()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def write(folder: Path, state: dict[str, Tensor], layout: dict[str, list[int]], named: int) -> None:
    """In one file, or in the shards that layout gives each tensor; the index names the nth shard
    of each, or one that does not have it."""
    weights_of(folder).unlink(missing_ok=True)
    if not layout:
        save_file(state, weights_of(folder), metadata={"format": "pt"})
        return
    for place, shard in enumerate(SHARDS):
        held = {name: tensor for name, tensor in state.items() if place in layout[name]}
        save_file(held, folder / shard, metadata={"format": "pt"})
    shards = {name: SHARDS[(layout[name][0] + named) % len(SHARDS)] for name in state}
    # a shard that no tensor is said to be in is not read
    shards |= {f"none.{shard}": shard for shard in SHARDS}
    index = {"metadata": {}, "weight_map": shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def theirs(folder: Path) -> tuple[Tensor, dict[str, Any]] | None:
    """Logits for IDS, and what was missing or left over; None where it cannot be loaded."""
    import transformers

    library: Any = transformers
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    try:
        model, found = library.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
    except Exception:  # of many kinds
        return None
    with torch.inference_mode():
        return model(IDS).logits, found


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_an_odd_folder_is_what_transformers_computes_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    kind = data.draw(st.sampled_from(["llama", "mistral", "qwen2"]))
    base = random_model(model_type=kind, attention_bias=kind == "qwen2", num_hidden_layers=1)
    save_model(base, folder)
    edit_config(folder, tie_word_embeddings=data.draw(st.booleans()))
    state = load_file(weights_of(folder))
    match data.draw(st.sampled_from(["another", "equal", "none", "alone"])):
        case "equal":
            state[HEAD] = state[EMBEDDING].clone()
        case "none":
            del state[HEAD]
        case "alone":
            del state[EMBEDDING]
    names = sorted(state)
    odd = data.draw(st.sampled_from(["nothing", "prefix", "prefixes", "missing", "left over"]))
    changed = data.draw(st.sampled_from(names))
    match odd:
        case "prefix":
            state = {name.removeprefix("model."): state[name] for name in names}
        case "prefixes":
            state = {
                name.removeprefix("model.") if name == changed else name: state[name]
                for name in names
            }
        case "missing":
            del state[changed]
        case "left over":
            state[f"{changed}_2"] = state[changed].clone()
    layout: dict[str, list[int]] = {}
    named = twice = 0
    if data.draw(st.booleans()):
        layout = {name: [place % 3] for place, name in enumerate(state)}
        named, twice = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 1))
        if twice:
            first = next(iter(state))
            layout[first] = [0, 1]
    write(folder, state, layout, named)

    expected = theirs(folder)
    try:
        model = load_model(folder).eval()
    except InputError as error:
        line = str(error)
        assert line.startswith(str(folder)) and "\n" not in line
        sound = expected is not None and not any(expected[1].values())
        assert not sound or twice or odd == "prefixes", line
        assert refusal(lambda: check_weights(folder)) == line
    else:
        check_weights(folder)
        assert expected is not None and not expected[1]["missing_keys"]
        assert (logits_of(model, IDS) - expected[0]).abs().max() < 1e-4
        save_model(model, folder / "published")
        again = theirs(folder / "published")
        assert again is not None and (again[0] - expected[0]).abs().max() < 1e-4
        assert logits_of(load_model(folder / "published").eval(), IDS).equal(logits_of(model, IDS))
    finally:
        shutil.rmtree(folder)


def test_a_tensor_in_two_shards_is_named_with_both(folder: Path) -> None:
    state = load_file(weights_of(folder))
    layout = {name: [0] for name in state} | {NORM: [1, 2]}
    write(folder, state, layout, named=0)
    said = refusal(lambda: load_model(folder))
    assert f"tensor '{NORM}' stands in b.safetensors and in c.safetensors, wanted it in" in said
    layout[NORM] = [2]
    write(folder, state, layout, named=1)
    assert load_config(folder) == load_model(folder).config, "found where it is"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_no_number_is_named_when_it_is_loaded(folder: Path, value: float) -> None:
    state = load_file(weights_of(folder))
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        written = {name: tensor.to(dtype) for name, tensor in state.items()}
        written[NORM][3] = value
        save_file(written, weights_of(folder))
        said = refusal(lambda: load_model(folder))
        assert said == f"{folder}: tensor '{NORM}' holds {value}, wanted finite numbers"
    state[NORM][3] = value
    save_file(state, weights_of(folder))
    check_weights(folder)


def test_a_weight_beyond_float32_is_named(folder: Path) -> None:
    state = {name: tensor.double() for name, tensor in load_file(weights_of(folder)).items()}
    state[NORM][3] = -1e39
    save_file(state, weights_of(folder))
    said = refusal(lambda: load_model(folder))
    assert f"tensor '{NORM}' holds -1e+39, beyond the 3.40282e+38 of float32: wanted a d" in said


@pytest.mark.parametrize(
    ("value", "dtype", "fits"),
    [
        (65504.0, torch.float16, True),
        (65519.0, torch.float16, True),
        (65520.0, torch.float16, False),
        (-70000.0, torch.float16, False),
        (70000.0, torch.bfloat16, True),
        (3.3e38, torch.bfloat16, True),
        (3.4e38, torch.bfloat16, False),
        (-3.4e38, torch.bfloat16, False),
    ],
)
def test_a_dtype_that_cannot_hold_a_weight_writes_nothing(
    value: float, dtype: torch.dtype, fits: bool, tmp_path: Path
) -> None:
    model = random_model()
    with torch.no_grad():
        model.norm.weight[5] = value
    if fits:
        save_model(model, tmp_path / "some/out", dtype=dtype)
        assert load_file(tmp_path / "some/out/model.safetensors")[NORM].isfinite().all()
        return
    said = refusal(lambda: save_model(model, tmp_path / "some/out", dtype=dtype))
    assert f"tensor '{NORM}' holds {value:g}, beyond the " in said
    assert list(tmp_path.iterdir()) == []


def test_export_ends_in_one_line_with_exit_code_1(folder: Path) -> None:
    state = load_file(weights_of(folder))
    state[NORM][5] = 70000.0
    save_file(state, weights_of(folder))
    command = ["export", "--model", str(folder), "--dtype", "float16", str(folder.parent / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "simple_llama.cli", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"error: tensor '{NORM}' holds 70000, beyond the 65504 of float16: wanted a dtype that "
        "holds it\n"
    )
    assert not (folder.parent / "out").exists()


def test_nan_is_found_wherever_it_stands() -> None:
    for size in (1, 7, 64, 1001):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for place in {0, size // 2, size - 1}:
                values = torch.randn(size).to(dtype)
                check_range(values, dtype, "x")
                values[place] = math.nan
                with pytest.raises(InputError, match="x holds nan"):
                    check_range(values, dtype, "x")


@pytest.mark.parametrize(("content", "said"), STAND_INS.items())
def test_another_file_in_the_place_of_weights_is_named(
    content: bytes, said: str, folder: Path
) -> None:
    weights_of(folder).write_bytes(content)
    line = refusal(lambda: load_model(folder))
    assert line.startswith(f"{weights_of(folder)}: {said}")
    assert refusal(lambda: check_weights(folder)) == line
    (folder / "base.pth").write_bytes(content)
    assert refusal(lambda: load_model(folder / "base.pth")).startswith(f"{folder}/base.pth: {said}")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_file_is_named_with_its_sizes(share: float, folder: Path) -> None:
    whole = weights_of(folder).read_bytes()
    cut = whole[: int(len(whole) * share)]
    weights_of(folder).write_bytes(cut)
    said = refusal(lambda: load_model(folder))
    assert refusal(lambda: check_weights(folder)) == said
    assert f"not a valid safetensors file: truncated, {len(cut):,} bytes of at least" in said
    assert share < 0.1 or said.endswith(f"at least {len(whole):,}")


def test_the_headers_are_held_against_the_config(folder: Path) -> None:
    state = load_file(weights_of(folder))
    check_weights(folder)
    edit_config(folder, intermediate_size=40)
    assert "has shape [32, 48], wanted [32, 40] by its config" in refusal(
        lambda: check_weights(folder)
    )
    edit_config(folder, intermediate_size=48)
    del state[NORM]
    save_file(state, weights_of(folder))
    assert "1 tensors are missing, first 'norm.weight'" in refusal(lambda: check_weights(folder))


@pytest.mark.parametrize("prefix", ["module.", "base_model.model.model.", "_orig_mod.model."])
def test_names_of_another_tool_are_shown(prefix: str, folder: Path) -> None:
    state = load_file(weights_of(folder))
    save_file({f"{prefix}{name}": one for name, one in state.items()}, weights_of(folder))
    said = refusal(lambda: load_model(folder))
    assert f"tensor '{prefix}" in said and "is of no layer, and so are the others: wanted" in said


def test_an_adapter_alone_is_named_as_such(folder: Path) -> None:
    adapter = folder.parent / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "some/llama"}')
    said = refusal(lambda: load_model(adapter))
    assert said.startswith(f"{adapter}: a PEFT adapter for some/llama, not a whole model: wanted")
    for content in ("{}", "[]", '{"base_model_name_or_path": 3}'):
        (adapter / "adapter_config.json").write_text(content)
        assert "a PEFT adapter, not a whole model" in refusal(lambda: check_weights(adapter))
    shutil.copyfile(adapter / "adapter_config.json", folder / "adapter_config.json")
    assert "a PEFT adapter, not" in refusal(lambda: load_model(folder)), "so does transformers"


def test_a_tied_model_with_another_output_projection_is_not_tied(tmp_path: Path) -> None:
    model = random_model(tie_word_embeddings=False)
    save_model(model, tmp_path / "base")
    edit_config(tmp_path / "base", tie_word_embeddings=True)
    loaded = load_model(tmp_path / "base", vocab_size=100)
    assert isinstance(loaded, Decoder) and not loaded.config.tie_word_embeddings
    assert torch.equal(loaded.lm_head.weight[:97], model.lm_head.weight)
    assert torch.equal(loaded.embed_tokens.weight[:97], model.embed_tokens.weight)


def test_check_says_what_is_wrong_with_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Project.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert "base model: base" in check()
    path = weights_of(tmp_path / "base")
    whole = path.read_bytes()
    for content, said in {**STAND_INS, whole[:-1]: "not a valid safetensors file: trunc"}.items():
        path.write_bytes(content)
        assert refusal(check).startswith(f"base/model.safetensors: {said}")
    state = load(whole)
    del state[NORM]
    save_file(state, path)
    assert "base: 1 tensors are missing, first 'norm.weight'" in refusal(check)
    path.unlink()
    assert "note: base has no weights yet, which train needs" in check()
    (tmp_path / "base/pytorch_model.bin").write_bytes(b"\x80")
    assert "base: no weights, wanted model.safetensors" in refusal(check)
    (tmp_path / "base/adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
    assert "base: a PEFT adapter for x, not a whole model" in refusal(check)
    for command in (
        lambda: load_replier("base", "cpu"),
        lambda: evaluate_file(
            model="base",
            prompt_format="auto",
            data="data/raw/few.json",
            out=None,
            device="cpu",
        ),
        lambda: export(folder="out", model="base", dtype="float32"),
    ):
        assert "base: a PEFT adapter for x" in refusal(command)
