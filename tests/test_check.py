"""`simple-llama check` tells what the run will do, and what would stop it."""

import re
from pathlib import Path

import pytest

from simple_llama import forecast
from simple_llama.check import check
from simple_llama.errors import InputError
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
        project.run("python", "-m", f"stages.{stage}")
    tokens, train = (project.json(f"reports/{name}.json") for name in ("tokenize", "train"))
    assert f"{tokens['train_examples']:,} examples to train on" in said
    assert f"{tokens['val_examples']:,} to validate" in said
    assert f"{train['steps']:,} steps of 16 examples, {train['epochs']:g} epochs" in said
    assert " MB of tensors at once, of " in line(said, "memory") and "free on cpu" in said
    assert re.search(r"^  moments +0\.1 MB  of AdamW, optimizer_state: fp32$", said, re.M)
    assert "models/sft/" in line(said, "kept") and "epochs" not in line(said, "kept")
    shown = said.partition("what will be trained, for example:\n")[2]
    inspected = project.run("simple-llama", "inspect", "-n", "20").splitlines()
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
    assert re.search(r"such a device \(cpu\): it fits with (activation_check|micro_b)", small)
    with pytest.raises(InputError, match=r"got 0\.1 MB of memory, wanted 0\.1 MB for weights"):
        check("0.05MB")
    project.set(device="auto")
    assert "(cuda)" in line(check("24GB"), "memory")


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
    assert "/tmp" not in str(caught.value) and "data/prepared/rejected.jsonl" in str(caught.value)
