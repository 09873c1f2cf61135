"""SimpleLLaMA's own checkpoints: its fixtures, an independent reference, and hostile ones."""

import dataclasses
import io
import os
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from simple_llama.errors import InputError
from simple_llama.files import digest
from simple_llama.model.checkpoint import check_fits, load_config
from simple_llama.model.config import MLA
from simple_llama.model.folder import load_model, save_model
from simple_llama.model.generation import generate
from simple_llama.model.pth_archive import MAX_PICKLE
from simple_llama.model.weights import weight_files
from tests.support.hostile import FUZZ, Payload, checked_line, refusal, spliced
from tests.support.models import STOP, greedy_without_cache, logits_of

FIXTURES = os.environ.get("SIMPLE_LLAMA_DATA", "")
MODULE = "simple_llama.pretraining.config"
VOCABULARY, INNER = 97, 96
IDS = torch.randint(0, VOCABULARY, (2, 30), generator=torch.Generator().manual_seed(1))


@dataclasses.dataclass
class TrainingConfig:
    """What of SimpleLLaMA's config shapes the model, and one setting that does not."""

    n_embd: int = 32
    n_heads: int = 4
    n_layers: int = 2
    max_seq_len: int = 64
    eps: float = 1e-5
    theta: int = 10000
    use_mla: bool = False
    q_lora_rank: int = 0
    kv_lora_rank: int = 20
    qk_nope_head_dim: int = 10
    qk_rope_head_dim: int = 8
    v_head_dim: int = 12
    dataset_dir: str = "x"


TrainingConfig.__module__ = MODULE
FORMS = {
    "multi-head": TrainingConfig(),
    "mla": TrainingConfig(use_mla=True),
    "mla, queries compressed": TrainingConfig(use_mla=True, q_lora_rank=14),
}


def linear(state: dict[str, Tensor], name: str, rows: int, columns: int, bias: bool) -> None:
    state[f"{name}.weight"] = torch.empty(rows, columns)
    if bias:
        state[f"{name}.bias"] = torch.empty(rows)


def random_state(c: TrainingConfig) -> dict[str, Tensor]:
    """Under SimpleLLaMA's names and shapes."""
    state: dict[str, Tensor] = {}
    linear(state, "embeddings", VOCABULARY, c.n_embd, False)
    for block in range(c.n_layers):
        name = f"decoder_blocks.{block}"
        attention = f"{name}.attention"
        queries = c.n_heads * (c.qk_nope_head_dim + c.qk_rope_head_dim)
        values = c.n_heads * c.v_head_dim
        if not c.use_mla:
            linear(state, f"{attention}.qkv_linear", 3 * c.n_embd, c.n_embd, False)
            linear(state, f"{attention}.out", c.n_embd, c.n_embd, False)
        else:
            if c.q_lora_rank:
                linear(state, f"{attention}.wq_a", c.q_lora_rank, c.n_embd, True)
                state[f"{attention}.q_norm.weight"] = torch.empty(c.q_lora_rank)
                linear(state, f"{attention}.wq_b", queries, c.q_lora_rank, True)
            else:
                linear(state, f"{attention}.wq", queries, c.n_embd, True)
            linear(state, f"{attention}.wkv_a", c.kv_lora_rank + c.qk_rope_head_dim, c.n_embd, True)
            state[f"{attention}.kv_norm.weight"] = torch.empty(c.kv_lora_rank)
            expanded = c.n_heads * c.qk_nope_head_dim + values
            linear(state, f"{attention}.wkv_b", expanded, c.kv_lora_rank, True)
            linear(state, f"{attention}.wo", c.n_embd, values, True)
        linear(state, f"{name}.ffwd.w1", INNER, c.n_embd, False)
        linear(state, f"{name}.ffwd.w2", c.n_embd, INNER, False)
        linear(state, f"{name}.ffwd.w3", INNER, c.n_embd, False)
        for norm in (f"{name}.norm1", f"{name}.norm2"):
            state[f"{norm}.weight"] = torch.empty(c.n_embd)
    state["norm.weight"] = torch.empty(c.n_embd)
    linear(state, "final_linear", VOCABULARY, c.n_embd, False)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        tensor.normal_(std=0.3, generator=generator).add_("norm" in name)
    return state


@pytest.fixture
def save(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Saves as SimpleLLaMA does, from a module of its name."""
    module = types.ModuleType(MODULE)
    module.TrainingConfig = TrainingConfig  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "simple_llama.pretraining", types.ModuleType("pretraining"))
    monkeypatch.setitem(sys.modules, MODULE, module)

    def save(config: TrainingConfig, state: dict[str, Any] | None = None, **others: Any) -> Path:
        state = random_state(config) if state is None else state
        content = {"model_state_dict": state, "config": config, "total_tok_trained": 1, **others}
        torch.save(content, tmp_path / "base.pth")
        return tmp_path / "base.pth"

    return save


def rotated(x: Tensor, theta: float) -> Tensor:
    """x (B, T, heads, width): neighbours as the parts of a complex number, turned."""
    width, length = x.shape[-1], x.shape[1]
    speeds = torch.tensor([theta ** (-2 * i / width) for i in range(width // 2)])
    turns = torch.exp(1j * torch.arange(length)[:, None] * speeds)[:, None]
    pairs = torch.complex(x[..., 0::2], x[..., 1::2]) * turns
    return torch.stack((pairs.real, pairs.imag), dim=-1).flatten(-2)


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def reference_logits(state: dict[str, Tensor], c: TrainingConfig, ids: Tensor) -> Tensor:
    """SimpleLLaMA's forward pass from its description, sharing nothing with the decoder."""

    def apply(name: str, x: Tensor) -> Tensor:
        bias = state.get(f"{name}.bias")
        product = x @ state[f"{name}.weight"].T
        return product if bias is None else product + bias

    def norm(name: str, x: Tensor) -> Tensor:
        return normed(x, state[f"{name}.weight"], c.eps)

    def attention(name: str, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        if c.use_mla:
            compressed = norm(f"{name}.q_norm", apply(f"{name}.wq_a", x)) if c.q_lora_rank else x
            q = apply(f"{name}.wq_b" if c.q_lora_rank else f"{name}.wq", compressed)
            q = q.view(B, T, c.n_heads, -1)
            head, turned = q[..., : c.qk_nope_head_dim], q[..., c.qk_nope_head_dim :]
            q = torch.cat((head, rotated(turned, c.theta)), dim=-1)
            latent = apply(f"{name}.wkv_a", x)
            shared = rotated(latent[..., None, c.kv_lora_rank :], c.theta)
            latent = norm(f"{name}.kv_norm", latent[..., : c.kv_lora_rank])
            keys_values = apply(f"{name}.wkv_b", latent).view(B, T, c.n_heads, -1)
            keys, v = keys_values[..., : c.qk_nope_head_dim], keys_values[..., c.qk_nope_head_dim :]
            k = torch.cat((keys, shared.repeat(1, 1, c.n_heads, 1)), dim=-1)
        else:
            q, k, v = apply(f"{name}.qkv_linear", x).view(B, T, c.n_heads, -1).chunk(3, dim=-1)
            q, k = rotated(q, c.theta), rotated(k, c.theta)
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        out = torch.einsum("bhij,bjhd->bihd", weights, v).reshape(B, T, -1)
        return apply(f"{name}.wo" if c.use_mla else f"{name}.out", out)

    x = state["embeddings.weight"][ids]
    for block in range(c.n_layers):
        name = f"decoder_blocks.{block}"
        x = x + attention(f"{name}.attention", norm(f"{name}.norm1", x))
        h = norm(f"{name}.norm2", x)
        gated = F.silu(apply(f"{name}.ffwd.w1", h)) * apply(f"{name}.ffwd.w3", h)
        x = x + apply(f"{name}.ffwd.w2", gated)
    return apply("final_linear", norm("norm", x))


@pytest.mark.skipif(not FIXTURES, reason="SIMPLE_LLAMA_DATA names no folder of fixtures")
@pytest.mark.parametrize("name", ["mha", "mla", "mla_qlora"])
def test_simple_llamas_own_checkpoints_give_its_logits(name: str) -> None:
    folder = Path(FIXTURES, "seed_checkpoint")
    expected = load_file(folder / f"{name}.logits.safetensors")
    mine = logits_of(load_model(folder / f"{name}.pth").eval(), expected["input_ids"])
    # of every eighth position, all logits
    assert (mine[:, ::8] - expected["logits"]).abs().max() < 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_computes_what_simple_llama_does(form: str, save: Any) -> None:
    config = FORMS[form]
    expected = reference_logits(random_state(config), config, IDS)
    model = load_model(save(config)).eval()
    assert model.config.model_type == (MLA if config.use_mla else "llama")
    assert (logits_of(model, IDS) - expected).abs().max() < 1e-4


def test_a_multi_head_model_is_published_as_plain_llama(save: Any, tmp_path: Path) -> None:
    import transformers

    config = FORMS["multi-head"]
    save_model(load_model(save(config)), tmp_path / "published")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "published")
    assert type(theirs).__name__ == "LlamaForCausalLM"
    with torch.inference_mode():
        found = theirs(IDS).logits
    assert (found - reference_logits(random_state(config), config, IDS)).abs().max() < 1e-4


@pytest.mark.parametrize("form", ["mla", "mla, queries compressed"])
def test_a_latent_model_is_published_under_a_name_of_its_own(
    form: str, save: Any, tmp_path: Path
) -> None:
    model = load_model(save(FORMS[form]), vocab_size=VOCABULARY + 2).eval()
    save_model(model, tmp_path / "published")
    again = load_model(tmp_path / "published").eval()
    assert again.config == model.config
    assert again.config.mla is not None
    assert torch.equal(logits_of(again, IDS), logits_of(model, IDS))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("form", ["mla", "mla, queries compressed"])
def test_latent_attention_cached_in_batches_equals_uncached(
    form: str, fused: bool, save: Any
) -> None:
    model = load_model(save(FORMS[form]), fused=fused).eval()
    with torch.no_grad():
        model.lm_head.weight[STOP] *= 2.5  # rows are to end at different places
    prompts = [IDS[0, :length].tolist() for length in (1, 5, 9, 3, 14)]
    replies = generate(model, prompts, max_new_tokens=10, stop_ids=[STOP])
    assert replies == [greedy_without_cache(model, prompt, 10) for prompt in prompts]


def test_what_a_compiled_model_on_a_gpu_in_bfloat16_saved(save: Any) -> None:
    state = {name: tensor.bfloat16() for name, tensor in random_state(FORMS["mla"]).items()}
    wrapped = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "seen": torch.arange(3)}}, "lr": 1e-3}
    model = load_model(save(FORMS["mla"], wrapped, optimizer_state_dict=optimizer)).eval()
    expected = reference_logits({k: v.float() for k, v in state.items()}, FORMS["mla"], IDS)
    assert (logits_of(model, IDS) - expected).abs().max() < 1e-4


def test_a_checkpoint_is_one_file_to_digest_and_to_check(save: Any) -> None:
    path = save(FORMS["multi-head"])
    assert weight_files(path) == [path]
    assert digest(weight_files(path)) == digest([path])
    assert check_fits(path, VOCABULARY, 64) == load_config(path)
    with pytest.raises(InputError, match="its vocabulary has 97 entries, the tokenizer 98"):
        check_fits(path, VOCABULARY + 1, 64)


@pytest.mark.parametrize("where", ["beside", "as the config", "as a weight", "whole"])
def test_code_in_a_checkpoint_is_refused_and_not_run(where: str, save: Any, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    hostile = Payload(marker)
    config = FORMS["multi-head"]
    if where == "beside":
        path = save(config, notes=hostile)
    elif where == "as the config":
        path = save(hostile, random_state(config))
    elif where == "as a weight":
        path = save(config, {**random_state(config), "norm.weight": hostile})
    else:
        path = tmp_path / "base.pth"
        torch.save(hostile, path)
    torch.load(path, weights_only=False)
    marker.rmdir()  # it works where it is let
    line = refusal(lambda: load_model(path))
    assert line == (
        f"{path}: it pickles posix.mkdir, wanted tensors and SimpleLLaMA's TrainingConfig only"
    )
    assert not marker.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_embd": 30}, "n_embd 30 is not divided by n_heads 4"),
        ({"n_embd": "32"}, "n_embd '32' is not divided"),
        ({"n_heads": 2**40}, "n_embd 32 is not divided"),
        ({"n_layers": 3}, "num_hidden_layers 3, the weights are of 2"),
        ({"eps": float("nan")}, "rms_norm_eps: got nan"),
        ({"max_seq_len": -1}, "max_position_embeddings: got -1"),
        ({"use_mla": True}, "'decoder_blocks.0.attention.qkv_linear.weight' has no place"),
        ({"use_mla": True, "kv_lora_rank": 2**31 - 1, "v_head_dim": 2**20}, "any memory holds"),
    ],
    ids=str,
)
def test_configs_that_its_weights_do_not_fit(changes: dict[str, Any], said: str, save: Any) -> None:
    config = TrainingConfig(n_heads=4)
    state = random_state(config)
    path = save(dataclasses.replace(config, **changes), state)
    line = refusal(lambda: load_model(path))
    assert said in line


def test_tensors_that_are_not_what_they_seem(save: Any) -> None:
    config = FORMS["multi-head"]
    state = random_state(config)
    wide = torch.zeros(1).expand(2**30, 32)
    path = save(config, {**state, "embeddings.weight": wide})
    assert "not contiguous, or longer than it" in refusal(lambda: load_model(path))
    shared = torch.zeros(10**6)
    many = {f"decoder_blocks.{i}.norm1.weight": shared for i in range(10)}
    path = save(config, {**state, **many})
    assert "its tensors are larger than the file" in refusal(lambda: load_model(path))
    path = save(config, {**state, "norm.weight": torch.zeros(32, dtype=torch.int32)})
    assert "is of I32: quantised weights" in refusal(lambda: load_model(path))
    path = save(config, {**state, "norm.weight": 3})
    assert "'norm.weight' is not a tensor" in refusal(lambda: load_model(path))
    path = save(config, {**state, "norm.weight": torch.zeros(0)})
    assert "'norm.weight' is not a tensor, or an empty one" in refusal(lambda: load_model(path))
    path = save(config, {**state, "norm.weight": Reduced(("base/data/99", "FloatStorage", 32))})
    assert "a tensor without a storage" in refusal(lambda: load_model(path))


class Reduced:
    """Pickled as a tensor over what is no storage."""

    def __init__(self, storage: object) -> None:
        self.storage = storage

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, (self.storage, 0, (32,), (1,), False, {})


def rewritten(path: Path, compression: int = zipfile.ZIP_STORED, **changes: bytes) -> Path:
    """The archive with other bytes in some of its entries."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, changes.get(name.rpartition("/")[2].replace(".", "_"), data))
    return path


def test_archives_that_grow_or_lie(save: Any) -> None:
    config = FORMS["multi-head"]
    path = rewritten(save(config), zipfile.ZIP_DEFLATED)
    assert "is compressed or longer than the file" in refusal(lambda: load_model(path))
    rewritten(save(config), data_pkl=b"\x80\x02" + b"N0" * (MAX_PICKLE // 2) + b"N.")
    assert "a data.pkl of up to" in refusal(lambda: load_model(path))
    rewritten(save(config), data_pkl=b"\x80\x02Nr\xf0\xff\xff\xff.")
    assert "its pickle has a memo of 4294967280 places" in refusal(lambda: load_model(path))
    rewritten(save(config), byteorder=b"big")
    assert "big-endian" in refusal(lambda: load_model(path))
    with zipfile.ZipFile(save(config)) as archive:
        pickled = archive.read("base/data.pkl")
    assert pickled.count(b"M \x0c") > 0, "wanted the number of 3104 elements"
    rewritten(path, data_pkl=pickled.replace(b"M \x0c", b"M!\x0c"))
    assert "does not have 3105 elements" in refusal(lambda: load_model(path))


def test_a_damaged_weight_is_not_trained_on(save: Any) -> None:
    path = save(FORMS["multi-head"])
    with zipfile.ZipFile(path) as archive:
        at = archive.read("base/data/3")[:64]
    data = path.read_bytes()
    assert data.count(at) == 1
    path.write_bytes(data.replace(at, bytes(64)))
    assert "is damaged: Bad CRC-32" in refusal(lambda: load_model(path))
    path.write_bytes(data[: len(data) // 2])
    assert "not a checkpoint of SimpleLLaMA" in refusal(lambda: load_model(path))


def test_other_pickles_are_refused(save: Any, tmp_path: Path) -> None:
    path = tmp_path / "base.pth"
    for content in ({}, [1], {"model_state_dict": {}, "config": {"n_embd": 3}}):
        torch.save(content, path)
        assert "wanted 'model_state_dict' and 'config'" in refusal(lambda: load_model(path))
    torch.save({}, path, _use_new_zipfile_serialization=False)
    assert "not a zip file" in refusal(lambda: load_model(path))
    path.write_bytes(pickle.dumps({}))
    assert "not a zip file" in refusal(lambda: load_model(path))
    os.mkfifo(tmp_path / "pipe.pth")
    assert "not a folder" in refusal(lambda: load_model(tmp_path / "pipe.pth"))


@FUZZ
@given(
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 8), st.binary(max_size=8)), max_size=4)
)
def test_damaged_pickles(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, int, bytes]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    content = {"model_state_dict": {"norm.weight": torch.zeros(4)}, "config": {"n_embd": 32}}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(buffer.getvalue())
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        pickled = archive.read(name)
    rewritten(path, data_pkl=spliced(pickled, damage))
    try:
        load_model(path)
    except InputError as error:
        checked_line(error)
