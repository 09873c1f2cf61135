"""`simple-llama check` tells what the run will do, and what would stop it."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from simple_llama import forecast
from simple_llama.check import check
from simple_llama.errors import InputError
from simple_llama.model import quantisation
from simple_llama.model.config import MLA, MLAConfig
from simple_llama.model.folder import save_model
from simple_llama.pages.numbers import epochs
from simple_llama.params.reading import Params
from simple_llama.training import estimate
from simple_llama.training.distributed import SINGLE_PROCESS
from simple_llama.training.setup import set_up
from tests.support.models import edit_config, random_model
from tests.support.project import Project

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    project = Project.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    return project


def line(said: str, start: str) -> str:
    [found] = [line for line in said.splitlines() if line.startswith(f"{start}: ")]
    return found


def files(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file() and ".git" not in path.parts}


def test_its_numbers_are_those_of_the_run(project: Project) -> None:
    before = files(project.root)
    said = check()
    new = {path.relative_to(project.root).parts[0] for path in files(project.root) - before}
    assert new <= {".locks"}, "nothing of the pipeline is written"
    for stage in ("prepare", "tokenize", "train"):
        project.call(f"stages.{stage}")
    tokens, train = (project.json(f"reports/{name}.json") for name in ("tokenize", "train"))
    assert f"{tokens['train_examples']:,} examples to train on" in said
    assert f"{tokens['val_examples']:,} to validate" in said
    assert f"{train['steps']:,} steps of 16 examples, {epochs(train['epochs'])} of " in said
    assert " MB of tensors at once, of " in line(said, "memory") and "free on cpu" in said
    assert re.search(r"^  moments +[\d.]+ kB  of AdamW, optimizer_state: fp32$", said, re.M)
    assert "models/sft/" in line(said, "kept") and "epochs" not in line(said, "kept")
    shown = said.partition("what will be trained, for example:\n")[2]
    inspected = project.call("simple-llama", "inspect", "-n", "20").splitlines()
    rendered = [row.strip() for row in shown.splitlines() if "<SOT>" in row]
    assert rendered and {row.split("<SOT>")[0] for row in rendered} == {"0  "}
    header = next(row.strip() for row in shown.splitlines() if " of them trained" in row)
    assert header in inspected, "the same tokens, and as many of them trained, as inspect shows"


def test_adapters_checkpoints_and_a_limit_are_told(project: Project) -> None:
    project.set(lora_rank=2, ckpt_epochs=1, max_steps=3, supervise="all_replies")
    said = check()
    assert "3 steps of 16 examples" in said and "supervise: all_replies" in said
    assert "models/checkpoints/" in said and "models/adapter/" in said
    [whole] = re.findall(r"^  weights .* ([\d.]+)M of the base$", said, re.M)
    [learned] = re.findall(r"^  gradients .* of ([\d.]+)M trained$", said, re.M)
    assert 0 < float(learned) < float(whole)


def test_another_devices_memory(project: Project) -> None:
    project.set(batch_size=64, max_seq_len=1024, packing=False)
    assert "of 24.0 GB free on such a device (cpu)" in line(check("24GB"), "memory")
    small = line(check("5MB"), "memory")
    assert small.startswith("memory: note: it may not fit: at most ")
    assert re.search(r"such a device \(cpu\), .*: it fits with (activation_check|micro_b)", small)
    least = line(check("0.05MB"), "memory")
    assert "it cannot fit, train would refuse it: at most " in least
    assert "of 50.0 kB free on such a device (cpu): no setting tried fits" in least
    for device in ("auto", "cuda"):
        project.set(device=device)
        said = check("24GB")
        assert line(said, "device").startswith("device: cuda with 24.0 GB (--memory), instead of")
        assert "(cuda)" in line(said, "memory") and "\ntime: " not in said


def test_processes_on_one_cpu_share_its_memory(project: Project) -> None:
    project.set(num_devices=4)
    said = check("24GB")
    assert line(said, "device").endswith(", 4 of them")
    assert "of 6.0 GB free on such a device (cpu) for each of 4 processes" in line(said, "memory")
    assert "free on cpu for each of 4 processes" in line(check(), "memory")


def test_a_plan_for_elsewhere_needs_no_library_here(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantisation, "has_library", lambda: False)
    project.set(lora_rank=4, lora_base="nf4")
    assert "tensors at once" in line(check("24GB"), "memory")
    with pytest.raises(InputError, match="bitsandbytes"):
        check()


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        work()
    return str(caught.value)


def set_up_training() -> object:
    return set_up(Params(), torch.device("cpu"), SINGLE_PROCESS)


def test_what_train_refuses_check_refuses_in_the_same_words(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stage in ("prepare", "tokenize"):
        project.call(f"stages.{stage}")
    set_up_training()
    settings = (project.root / "params.yaml").read_text()
    weights = project.root / "base/model.safetensors"

    def both(said: str, **change: object) -> None:
        """With weights, and check without them too."""
        project.set(**change)
        assert said in refusal(set_up_training) == refusal(check)
        hidden = weights.rename(project.root / "elsewhere")
        assert said in refusal(check)
        hidden.rename(weights)
        (project.root / "params.yaml").write_text(settings)

    both("lora_rank: got 17, wanted at most 8, a target's own rank", lora_rank=17)
    both("lora_targets: got qkv_proj, wanted", lora_rank=2, lora_targets="qkv_proj+o_proj")
    both("cuda_graphs: got true, wanted false on cpu", cuda_graphs="true")
    generation = project.root / "base/generation_config.json"
    known = generation.read_text()
    generation.write_text('{"eos_token_id": "end"}')
    both("base/generation_config.json: eos_token_id: got 'end', wanted token ids")
    generation.write_text(known)
    with monkeypatch.context() as patch:
        patch.setattr(estimate, "uses_bf16", lambda device, precision: False)
        both("weights: got bf16, and precision: auto is fp32 on this cpu", weights="bf16")
        patch.setattr(quantisation, "has_library", lambda: False)
        both("lora_base: nf4 needs bitsandbytes", lora_rank=2, lora_base="nf4")
    shape = MLAConfig(
        q_lora_rank=None, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=8
    )
    vocabulary = json.loads((project.root / "base/config.json").read_text())["vocab_size"]
    own = {"max_position_embeddings": 256, "num_key_value_heads": 4, "attention_bias": True}
    model = random_model(model_type=MLA, mla=shape, vocab_size=vocabulary, **own)
    shutil.copytree(project.root / "base", project.root / "tokenizer")
    shutil.rmtree(project.root / "base")
    save_model(model, project.root / "base", project.root / "tokenizer")
    both("lora_rank: got 2, wanted 0 for a model with latent attention", lora_rank=2)


def test_adapters_on_tokens_that_the_base_does_not_know(project: Project) -> None:
    project.set(prompt_format="chatml")
    project.set(lora_rank=2)
    said = "base has no trained embedding of <|im_start|>, <|im_end|>, and adapters learn none"
    assert said in refusal(check)
    (project.root / "base/model.safetensors").unlink()
    assert said in refusal(check), "by the size of its vocabulary"


def test_a_config_and_a_tokenizer_are_enough(project: Project) -> None:
    whole = check("24GB")
    (project.root / "base/model.safetensors").unlink()
    said = check("24GB")
    note = "note: base has no weights yet, which train needs: all is by its config.json alone\n"
    assert said.replace(note, "") == whole
    edit_config(project.root / "base", torch_dtype="bfloat16", dtype="bfloat16")
    project.set(lora_rank=2)
    half = check("24GB")
    edit_config(project.root / "base", torch_dtype="float32", dtype="float32")
    assert half != check("24GB"), "frozen weights that bfloat16 holds exactly take half"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"warmup_iterations": 200}, r"warmup_iterations: got 200, wanted at most the 2\d optimi"),
        ({"max_seq_len": 40}, r"examples are longer than max_seq_len \(40 tokens\)"),
        ({"train_split": 0.999999}, r"no example on the validation side"),
    ],
)
def test_what_would_stop_a_stage_stops_it(
    project: Project, change: dict[str, object], said: str
) -> None:
    project.set(**change)
    with pytest.raises(InputError, match=said):
        check()


def test_of_large_data_the_first_rows_are_read(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "ROWS", 60)
    said = check()
    assert "data: at least " in said and "of the first 60 rows" in said
    assert "training: at least " in said
    project.set(max_seq_len=40)
    assert "note: of the first 60 rows of the data: " in check(), "the others may be shorter"


def test_a_rejected_file_is_named_where_prepare_will_write_it(project: Project) -> None:
    (project.root / "data/raw/few.json").write_text('[{"messages": 1}, {"messages": 2}]')
    with pytest.raises(InputError, match="rejected") as caught:
        check()
    assert "/tmp" not in str(caught.value) and "rejected.jsonl (which `dvc repro` writes)" in str(
        caught.value
    )
