"""QLoRA: the base in 4 bits is what the paper says, costs what it says, and is never published."""

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from simple_llama.data.prompt import ChatTokenizer
from simple_llama.errors import InputError
from simple_llama.model.decoder import Decoder
from simple_llama.model.folder import load_model, save_model
from simple_llama.model.quantisation import (
    BLOCK,
    BYTES_EACH,
    NF4Linear,
    held_bytes,
    in_nf4,
    library_version,
    require_library,
    weight_count,
)
from simple_llama.training.distributed import SINGLE_PROCESS, Ranks
from simple_llama.training.fine_tuning import fine_tuning_method
from simple_llama.training.loop import report, train
from simple_llama.training.loss import score
from simple_llama.training.resume import ResumeFolder
from simple_llama.training.state import TrainResult
from tests.support.models import logits_of, random_model, tiny_config
from tests.support.project import Project
from tests.support.ranks import together
from tests.support.trainings import PAD, Listener, data, params
from tests.training import test_resume

IDS = torch.randint(0, 97, (3, 20), generator=torch.Generator().manual_seed(1))
GENERATOR = torch.Generator()


def quantised(weight: Tensor, bias: Tensor | None = None) -> NF4Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    if bias is not None:
        linear.bias = nn.Parameter(bias)
    layer = NF4Linear(linear)
    layer.quantise(weight)
    return layer


def normal_float() -> Tensor:
    """The levels by the paper's own words: quantiles of a normal distribution, eight on the side
    of the positive numbers and seven on that of the negative, zero, and all over the largest."""
    end = (1 - 1 / (2 * 15) + 1 - 1 / (2 * 16)) / 2
    positive = torch.special.ndtri(torch.linspace(0.5, end, 9, dtype=torch.float64))[1:]
    negative = -torch.special.ndtri(torch.linspace(0.5, end, 8, dtype=torch.float64))[1:]
    levels = torch.cat([negative, torch.zeros(1, dtype=torch.float64), positive])
    normal: Tensor = levels.sort().values / positive.max()
    return normal


def test_weights_are_the_nearest_levels_of_normal_float() -> None:
    # each block with the same largest value, so that the scales are held exactly
    weight = torch.linspace(-1, 1, 63 * 32).view(-1, 63)
    weight = F.pad(weight, (0, 1), value=1.0)
    rounded = quantised(3 * weight).dequantised() / 3
    levels = normal_float()
    assert sorted(set(rounded.flatten().tolist())) == pytest.approx(levels.tolist(), abs=1e-6)
    nearest = levels[(weight.double()[..., None] - levels).abs().argmin(-1)]
    assert (rounded - nearest).abs().max() < 1e-6


@pytest.mark.parametrize("shape", [(96, 200), (7, 33), (1, 1), (1030, 512)])
def test_rounding_is_bounded_and_costs_4_127_bits(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=GENERATOR.manual_seed(3))
    layer = quantised(weight)
    flat = F.pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
    scales = flat.abs().amax(1).repeat_interleave(BLOCK)[: weight.numel()].view(shape)
    widest = normal_float().diff().max().item() / 2
    error = (layer.dequantised() - weight).abs()
    assert (error <= (widest + 0.02) * scales).all(), "half a step, and what the scales lose"
    assert error.mean() < 0.1 * weight.abs().mean() + 1e-6
    if weight.numel() > 2**19:
        levels = layer.scale_levels.nbytes
        assert (held_bytes(layer) - levels) / weight.numel() == pytest.approx(BYTES_EACH, rel=1e-3)
        assert pytest.approx(4.127, abs=1e-3) == 8 * BYTES_EACH, "as the paper says"


@pytest.mark.parametrize("value", [0.0, -0.25])
def test_equal_weights_are_held_exactly(value: float) -> None:
    weight = torch.full((9, 40), value)
    assert torch.equal(quantised(weight).dequantised(), weight)


def test_the_library_itself_rounds_the_same() -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.randn(130, 192, generator=GENERATOR.manual_seed(4))
    theirs = dequantize_4bit(*quantize_4bit(weight, quant_type="nf4", compress_statistics=True))
    assert (quantised(weight).dequantised() - theirs).abs().max() < 1e-6


def test_the_bytes_do_not_depend_on_threads() -> None:
    weight = torch.randn(2100, 2048, generator=GENERATOR.manual_seed(5))
    threads, held = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            held.append(list(quantised(weight).buffers()))
    finally:
        torch.set_num_threads(threads)
    for one in held[1:]:
        assert all(map(torch.equal, held[0], one))


@pytest.mark.parametrize("bias", [False, True])
def test_products_and_gradients_are_those_of_the_rounded_weight(bias: bool) -> None:
    generator = GENERATOR.manual_seed(6)
    weight = torch.randn(50, 72, generator=generator)
    offset = torch.randn(50, generator=generator) if bias else None
    layer = quantised(weight, offset)
    x = torch.randn(3, 5, 72, generator=generator, requires_grad=True)
    grad = torch.randn(3, 5, 50, generator=generator)
    out = layer(x)
    out.backward(grad)
    dense, y = layer.dequantised().double(), x.detach().double().requires_grad_()
    expected = F.linear(y, dense, None if offset is None else offset.double())
    expected.backward(grad.double())  # type: ignore[no-untyped-call]
    assert x.grad is not None and y.grad is not None
    assert (out - expected).abs().max() < 1e-4
    assert (x.grad - y.grad).abs().max() < 1e-4

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.bias is None or layer.bias.dtype == torch.float32
        half = layer(x)
        written = F.linear(x, layer.dequantised(), offset)
    assert half.dtype == torch.bfloat16
    assert (half - written).abs().max() <= 2**-6 * written.abs().max(), "computed in bfloat16"
    if not bias:
        assert torch.equal(half, written)


def in_folder(folder: Path, *, exact: bool = False, **changes: object) -> Path:
    model = random_model(**changes)
    if exact:
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().float()
    save_model(model, folder, dtype=torch.bfloat16 if exact else torch.float32)
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"model_type": "phi3"},
        {"attention_bias": True, "mlp_bias": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("exact", [False, True])
def test_what_is_read_tensor_by_tensor_is_what_a_whole_model_becomes(
    changes: dict[str, Any], exact: bool, tmp_path: Path
) -> None:
    folder = in_folder(tmp_path / "base", exact=exact, **changes)
    for base in ("nf4", "bf16"):
        settings = params(lora_rank=2, lora_base=base, precision="bf16")
        whole = load_model(folder)
        read = load_model(folder, compact=True, nf4=base == "nf4")
        for model in (whole, read):
            fine_tuning_method(settings, str(folder), Path("tokenizer")).prepare(model, settings)
        mine, theirs = (
            {**dict(model.named_parameters()), **dict(model.named_buffers())}
            for model in (read, whole)
        )
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert tensor.dtype == theirs[name].dtype, name
            assert torch.equal(tensor, theirs[name]), name
            assert tensor.requires_grad == theirs[name].requires_grad
        layers = [m for m in read.layers.modules() if isinstance(m, NF4Linear)]
        assert bool(layers) == (base == "nf4")
        assert weight_count(read) == weight_count(whole)
    assert weight_count(load_model(folder, nf4=True)) == weight_count(load_model(folder))


@pytest.mark.slow
def test_transformers_computes_the_same_in_4_bits(tmp_path: Path) -> None:
    import transformers

    folder = in_folder(tmp_path, hidden_size=64, head_dim=16, intermediate_size=128)
    models: Any = transformers.AutoModelForCausalLM
    config: Any = transformers.BitsAndBytesConfig
    kept = config(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    theirs = models.from_pretrained(folder, quantization_config=kept, dtype=torch.float32)
    expected = theirs.train()(IDS).logits.detach()  # in eval it rounds activations to bfloat16
    mine = logits_of(load_model(folder, nf4=True).eval(), IDS)
    assert (mine - expected).abs().max() < 1e-5 * expected.abs().max()
    original = logits_of(load_model(folder).eval(), IDS)
    assert (mine - original).abs().max() > 0.05 * expected.abs().max(), "both rounded"


PEAK = """
import sys, psutil
import bitsandbytes
from simple_llama.model.folder import load_model
before = psutil.Process().memory_info().rss
load_model(sys.argv[1], compact=sys.argv[2] != "fp32", nf4=sys.argv[2] == "nf4")
# not getrusage's, which begins at what the process had that started this one
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(1024 * int(peak) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_never_holds_the_whole_in_float32(tmp_path: Path) -> None:
    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4}
    model = Decoder(
        tiny_config(**shape, num_attention_heads=16, num_key_value_heads=4, head_dim=64)
    )
    model.init_weights(0)
    save_model(model, tmp_path, dtype=torch.bfloat16)
    weights = weight_count(model)
    assert weights > 60e6
    del model
    peaks = {}
    for way in ("bf16", "nf4"):
        command = [sys.executable, "-c", PEAK, str(tmp_path), way]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[way] = int(found.stdout) / weights
    # bytes a weight; on top of what is held one matrix in between, and pages of the file
    assert 2 < peaks["bf16"] < 3
    assert peaks["nf4"] < 2


def trained(ranks: Ranks = SINGLE_PROCESS, **changes: Any) -> tuple[TrainResult, Listener, Decoder]:
    settings = params(**{"lora_rank": 4, "lora_base": "nf4", "max_lr": 0.03, **changes})
    model, listener = random_model(), Listener()
    fine_tuning_method(settings, "base", Path("tokenizer")).prepare(model, settings)
    return train(model, data(), settings, listener, ranks=ranks), listener, model


def losses(listener: Listener) -> list[float]:
    return [step.loss for step in listener.steps]


def test_adapters_learn_on_a_rounded_base_as_on_the_original() -> None:
    for precision in ("fp32", "bf16"):
        found, heard, _ = trained(epochs=4, precision=precision)
        plain, listener, _ = trained(epochs=4, precision=precision, lora_base="bf16")
        assert found.train_loss < 0.9 * losses(heard)[0]
        assert found.train_loss == pytest.approx(plain.train_loss, rel=0.02)
        assert losses(heard)[0] != losses(listener)[0]
        assert heard.rounded_base and not listener.rounded_base


@pytest.mark.parametrize(
    "changes",
    [
        {"packing": True},
        {"packing": False},
        {"activation_checkpointing": "blocks", "lora_dropout": 0.2},
        {"precision": "bf16", "optimizer_state": "8bit"},
    ],
    ids=str,
)
def test_it_goes_with(changes: dict[str, Any]) -> None:
    again = {**changes, "activation_checkpointing": "none"}
    _, heard, model = trained(epochs=1, **changes)
    _, listener, other = trained(epochs=1, **again)
    assert losses(heard) == losses(listener)
    _, packed, _ = trained(epochs=1, **{**changes, "lora_dropout": 0.0, "packing": True})
    _, padded, _ = trained(epochs=1, **{**changes, "lora_dropout": 0.0, "packing": False})
    close = 1e-5 if changes.get("precision") != "bf16" else 3e-2
    assert losses(packed) == pytest.approx(losses(padded), abs=close)
    for one in (model, other):
        kinds = [m for m in one.layers.modules() if isinstance(m, NF4Linear)]
        assert len(kinds) == 14, "all projections, and after the training too"


@pytest.mark.slow
def test_compiled_it_trains_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, **settings: real(
            function, **settings, backend="aot_eager", fullgraph=True
        ),
    )
    torch._dynamo.reset()
    few: dict[str, Any] = {"max_steps": 3, "packing": True, "lora_targets": "q_proj+up_proj"}
    _, heard, _ = trained(**few, enable_compilation=True)
    torch._dynamo.reset()
    _, listener, _ = trained(**few)
    assert losses(heard) == pytest.approx(losses(listener), abs=1e-4)


def test_what_rounding_cost_is_reported() -> None:
    result, listener, _ = trained(epochs=1)
    base = random_model()
    in_nf4(base)
    tokens = data().val
    rounded = score(
        base, tokens, np.arange(len(tokens)), max_tokens=2048, pad_id=PAD, precision="fp32"
    )
    assert result.rounded_base_val_loss == pytest.approx(rounded.mean_loss, rel=1e-6)
    assert listener.rounded_base == [(result.rounded_base_val_loss, len(tokens))]
    assert report(result)["rounded_base_val_loss"] == result.rounded_base_val_loss
    plain, _, _ = trained(epochs=1, lora_base="bf16")
    assert "rounded_base_val_loss" not in report(plain)


def test_published_are_the_original_weights_and_the_adapters_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    base = load_model(in_folder(Path("base")))
    chat = ChatTokenizer.from_path(tiny_tokenizer, prompt_format="auto", system_prompt="")
    chat.save(tmp_path / "tokenizer")
    settings = params(lora_rank=4, lora_alpha=6.0, lora_base="nf4", lora_targets="q_proj+up_proj")
    tuning = fine_tuning_method(settings, "base", tmp_path / "tokenizer")
    model = load_model("base", nf4=True)
    tuning.prepare(model, settings)
    train(model, data(), settings, Listener())
    kept = ResumeFolder(tmp_path / "kept", interval=0.0)
    tuning.save(model, kept.best_path(3))
    said = tuning.publish(kept, 3, IDS)
    assert float(said["lora.merged_logits_differ_by"]) < 1e-4
    matrices = load_file("models/adapter/adapter_model.safetensors")
    published = load_model("models/sft")
    changed = 0
    for (name, mine), original in zip(published.named_parameters(), base.parameters(), strict=True):
        key = f"base_model.model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in matrices:
            a, b = (matrices[f"{key}.lora_{which}.weight"] for which in "AB")
            assert torch.equal(mine, original + 1.5 * b @ a), name
            assert not torch.equal(mine, original)
            changed += 1
        else:
            assert torch.equal(mine, original), name
    assert changed == 4
    assert (logits_of(published, IDS) - logits_of(model, IDS)).abs().max() > 1e-3, "rounded"


def codes_and_losses(ranks: Ranks) -> tuple[list[Tensor], list[float]]:
    _, listener, model = trained(ranks, epochs=1)
    layers = [m for m in model.layers.modules() if isinstance(m, NF4Linear)]
    return [buffer for layer in layers for buffer in layer.buffers()], losses(listener)


@pytest.mark.slow
def test_ranks_round_to_the_same_bytes_and_train_as_one() -> None:
    (mine, one), (theirs, other) = together(2, codes_and_losses)
    alone, expected = codes_and_losses(SINGLE_PROCESS)
    for same in (theirs, alone):
        assert all(map(torch.equal, mine, same))
    assert one == other == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_rank": 0}, "lora_base: got 'nf4', wanted bf16 with lora_rank: 0"),
        ({"shard": "full"}, "lora_base: got 'nf4', wanted bf16 with shard: 'full'"),
        ({"cuda_graphs": True}, "lora_base: got 'nf4', wanted bf16 with cuda_graphs"),
        (
            {"weights": "bf16", "precision": "bf16"},
            "weights: got 'bf16', wanted fp32 with lora_rank",
        ),
    ],
)
def test_what_does_not_go_together_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        params(**{"lora_rank": 4, "lora_base": "nf4", **changes})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_continued_after_any_step_it_ends_with_the_same_bytes(precision: Any) -> None:
    settings = dataclasses.replace(
        test_resume.SETTINGS,
        epochs=2,
        precision=precision,
        lora_rank=2,
        lora_dropout=0.2,
        lora_base="nf4",
    )
    test_resume.test_continued_after_any_step_it_ends_with_the_same_bytes(settings)


@pytest.mark.slow
def test_the_stages_say_what_rounding_cost(tmp_path: Path) -> None:
    project = Project.make(tmp_path / "project")
    project.set(lora_rank=4, lora_base="nf4", precision="fp32")
    stages = ("prepare", "tokenize", "train", "baseline", "evaluate")
    said = "".join(project.call(f"stages.{stage}") for stage in stages)
    rounded = project.json("reports/train.json")["rounded_base_val_loss"]
    assert f"base in 4 bits: validation loss {rounded:.4f} over all" in said
    result = project.json("reports/eval.json")
    assert result["rounded_base_val_loss"] == pytest.approx(rounded, abs=1e-6)
    assert 0 < abs(rounded - result["base_val_loss"]) < 0.2
    line = f"validation loss {rounded:.4f}, of the original {result['base_val_loss']:.4f}"
    assert f"base in 4 bits: {line}" in said
    assert line in (project.root / "models/report.html").read_text()
    best = project.json("reports/train.json")["best_val_loss"]
    assert result["val_loss"] == pytest.approx(best, abs=0.1), "merged into the original weights"
    run = project.tracked().data
    assert run.tags["bitsandbytes"] == library_version()
    assert run.metrics["rounded_base_val_loss"] == rounded
    assert run.metrics["eval_rounded_base_val_loss"] == pytest.approx(rounded, abs=1e-6)


def test_without_the_library_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_library()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^lora_base: nf4 needs .*: pip install -e '\.\[qlora\]'"):
        quantised(torch.ones(4, 4))
