"""A training that is interrupted and continued ends as one that never was."""

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from simple_llama.errors import InputError
from simple_llama.model.decoder import Decoder
from simple_llama.params.train import TrainParams
from simple_llama.process import file_lock
from simple_llama.training.curves import Curves
from simple_llama.training.fine_tuning import fine_tuning_method
from simple_llama.training.loop import train
from simple_llama.training.recorder import load_resume_state, save_diverged
from simple_llama.training.resume import (
    DamagedState,
    ResumeFolder,
    TrainingStart,
    key_lock,
    remove_published,
)
from simple_llama.training.state import Diverged, Progress, Snapshot
from tests.support.trainings import Keeper, Listener, data, new_model, params

SETTINGS = params(
    dropout=0.2,
    epochs=3,
    eval_interval=2,
    sample_prompts=2,
    sample_max_tokens=8,
    sample_temperature=1.0,
    micro_batch_tokens=40,
)


def tuned_model(settings: TrainParams) -> Decoder:
    model = new_model(settings.dropout)
    fine_tuning_method(settings, "base", Path("tokenizer")).prepare(model, settings)
    return model


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        dataclasses.replace(SETTINGS, early_stopping_patience=1, max_lr=0.3),
        dataclasses.replace(SETTINGS, epochs=2, lora_rank=2, lora_dropout=0.2),
        dataclasses.replace(SETTINGS, epochs=2, weights="bf16", precision="bf16"),
        dataclasses.replace(SETTINGS, epochs=2, optimizer_state="8bit"),
        dataclasses.replace(
            SETTINGS, epochs=2, optimizer_state="bf16", weights="bf16", precision="bf16"
        ),
    ],
)
def test_continued_after_any_step_it_ends_with_the_same_bytes(settings: TrainParams) -> None:
    few = data(10, 4)  # three steps an epoch, the last of them partial
    model, whole = tuned_model(settings), Keeper()
    result = train(model, few, settings, whole)
    assert len(whole.snapshots) == result.steps >= 6 and len(whole.samples) >= 2
    for done, snapshot in enumerate(whole.snapshots, start=1):
        continued, listener = tuned_model(settings), Listener()
        copied = Snapshot(copy.copy(snapshot.progress), snapshot.tensors)
        assert train(continued, few, settings, listener, copied) == result
        for mine, theirs in zip(model.parameters(), continued.parameters(), strict=True):
            assert torch.equal(mine, theirs)
        losses = [(step.step, step.loss, step.grad_norm) for step in whole.steps]
        assert [(s.step, s.loss, s.grad_norm) for s in listener.steps] == losses[done:]
        assert listener.validations == [v for v in whole.validations if v[0] > done]
        assert listener.samples == [sample for sample in whole.samples if sample[0] > done]


def test_the_snapshot_of_another_model_is_refused() -> None:
    whole = Keeper()
    train(new_model(), data(), params(max_steps=2), whole)
    tensors = dict(whole.snapshots[0].tensors)
    name = next(name for name in tensors if name.startswith("model."))
    for change in ({name: tensors[name][:1]}, {"model.other": tensors[name]}):
        with pytest.raises(InputError, match="snapshot is of another training"):
            broken = Snapshot(whole.snapshots[0].progress, {**tensors, **change})
            train(new_model(), data(), params(max_steps=2), Listener(), broken)
    del tensors[name]
    with pytest.raises(InputError, match="snapshot is of another training: "):
        broken = Snapshot(whole.snapshots[0].progress, tensors)
        train(new_model(), data(), params(max_steps=2), Listener(), broken)


START = TrainingStart(run={"local_id": "abc", "started": 5}, ranks=1, threads=2)


def best_model(folder: ResumeFolder, step: int) -> None:
    folder.best_path(step).mkdir(parents=True)
    save_file({"a": torch.full((3,), float(step))}, folder.best_path(step) / "model.safetensors")


def progress(step: int, best: int) -> Progress:
    return Progress(
        micro_batch_tokens=64, next_sample=9, sample_interval=2.5, step=step, best_step=best
    )


def about(step: int, best: int = 0) -> dict[str, Any]:
    return {
        "progress": dataclasses.asdict(progress(step, best)),
        "samples": [{"step": 1, "reply": "ä"}],
        "resumed": [3],
        "curves": Curves().values,
    }


@pytest.fixture
def folder(tmp_path: Path) -> ResumeFolder:
    """A state after step 7 whose best model is that of step 6."""
    folder = ResumeFolder(tmp_path / ".resume" / "key", interval=0.0)
    folder.load_or_save_start(START)
    curves = Curves()
    curves.add("val", step=6, loss=0.1 + 0.2, timestamp=1_700_000_000_123)
    best_model(folder, 3)
    folder.save({"model.a": torch.zeros(3)}, about(3, 3), step=3, best=3)
    best_model(folder, 6)
    folder.save({"model.a": torch.ones(3)}, about(7, 6) | {"curves": curves.values}, step=7, best=6)
    return folder


def test_what_is_loaded_is_what_was_saved_last(folder: ResumeFolder) -> None:
    state = load_resume_state(folder)
    assert state is not None
    assert repr(state.snapshot.progress) == repr(progress(7, 6)), "not a number is kept too"
    assert math.isinf(state.snapshot.progress.best_val_loss)
    assert state.snapshot.tensors["model.a"].tolist() == [1, 1, 1]
    assert state.curves.rows["val"] == [
        {"step": 6, "loss": 0.1 + 0.2, "timestamp": 1_700_000_000_123}
    ]
    assert state.curves.rows["train"] == []
    assert (state.samples, state.resumed) == ([{"step": 1, "reply": "ä"}], [3])
    kept = {path.name for path in folder.folder.iterdir()}
    assert kept == {"start.json", "state.json", "state-7.safetensors", "best-6"}, "no older ones"


def test_a_training_keeps_its_run_from_before_its_first_state_on(tmp_path: Path) -> None:
    folder = ResumeFolder(tmp_path / "key", interval=0.0)
    assert load_resume_state(folder) is None
    assert folder.load_or_save_start(START) is START
    (folder.folder / "epoch-01").mkdir()
    best_model(folder, 3)
    (folder.folder / ".state.json.tmp").write_bytes(b"{")
    assert load_resume_state(folder) is None
    assert [path.name for path in folder.folder.iterdir()] == ["start.json"]
    other = dataclasses.replace(START, run={"local_id": "def"})
    assert folder.load_or_save_start(other) == START
    several = dataclasses.replace(other, ranks=2)
    assert folder.load_or_save_start(several) is several, "its results will be others"
    assert folder.load_or_save_start(other) is other


def test_a_start_that_cannot_be_read_is_made_anew(tmp_path: Path) -> None:
    folder = ResumeFolder(tmp_path / "key", interval=0.0)
    folder.load_or_save_start(START)
    for content in ("", "[]", "{}", '{"run": 1}'):
        (folder.folder / "start.json").write_text(content)
        assert folder.load_or_save_start(START) is START
        assert folder.load_or_save_start(dataclasses.replace(START, run={})) == START


FILES = ["start.json", "state.json", "state-7.safetensors", "best-6/model.safetensors"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["half", "flip", "gone", "empty"])
def test_a_damaged_state_is_one_line_and_a_fresh_start(
    folder: ResumeFolder, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder.folder / name
    content = bytearray(path.read_bytes())
    if damage == "half":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[len(content) // 2] ^= 64
        path.write_bytes(content)
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"")
    if (name, damage) == ("state.json", "gone"):
        assert load_resume_state(folder) is None, (
            "that is how a training looks before its first state"
        )
        assert [path.name for path in folder.folder.iterdir()] == ["start.json"]
        return
    if damage == "flip" and name.endswith(".json"):
        # the flipped byte may stand where nothing depends on it
        load_resume_state(folder)
        return
    with pytest.raises(DamagedState):
        folder.load()
    assert load_resume_state(folder) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "the resume state is damaged, training starts from the beginning" in line
    assert not folder.folder.exists()


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"step": 7}', '{"step": "../x", "digests": {}, "about": {}}', "null"]
)
def test_a_state_of_another_shape_is_damaged(folder: ResumeFolder, content: str) -> None:
    (folder.folder / "state.json").write_text(content)
    with pytest.raises(DamagedState):
        folder.load()
    assert load_resume_state(folder) is None


def test_a_state_that_cannot_be_written_leaves_the_one_before(
    folder: ResumeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "state")

    monkeypatch.setattr("simple_llama.training.snapshot_files.write_safetensors", full)
    with pytest.raises(OSError, match="No space left"):
        folder.save({"model.a": torch.zeros(3)}, about(9), step=9, best=0)
    state = load_resume_state(folder)
    assert state is not None
    assert state.snapshot.progress.step == 7


def test_a_best_model_that_vanished_is_named(folder: ResumeFolder) -> None:
    with pytest.raises(InputError, match="best-9 has vanished; the same command trains afresh"):
        folder.save({"model.a": torch.zeros(3)}, about(9, 9), step=9, best=9)


def test_saving_takes_at_most_its_share_of_the_time(
    folder: ResumeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("simple_llama.training.resume.time.monotonic", lambda: clock[0])
    eager = ResumeFolder(folder.folder, interval=1.0)
    assert not eager.is_due()
    clock[0] += 1.0
    assert eager.is_due()

    def slow(tensors: dict[str, torch.Tensor], path: Path) -> None:
        clock[0] += 3.0
        save_file(tensors, path)

    monkeypatch.setattr("simple_llama.training.snapshot_files.write_safetensors", slow)
    eager.save({"model.a": torch.zeros(3)}, about(9), step=9, best=0)
    clock[0] += 149.0
    assert not eager.is_due(), "3 seconds of saving are 2% of 150"
    clock[0] += 2.0
    assert eager.is_due()
    assert not ResumeFolder(folder.folder, interval=0.0).is_due()


def test_a_published_state_is_forgotten_by_its_run_only(folder: ResumeFolder) -> None:
    root = folder.folder.parents[1]
    remove_published(root, "r1")
    folder.mark_published("r1")
    remove_published(root, "r2")
    assert load_resume_state(folder) is not None, "another run's evaluation"
    with file_lock(key_lock(root, folder.folder.name)):
        remove_published(root, "r1")
        assert load_resume_state(folder) is not None, "somebody uses it"
    remove_published(root, "r1")
    assert not folder.folder.exists()


def test_what_a_training_diverged_on_is_kept_and_nothing_to_continue_from(
    folder: ResumeFolder,
) -> None:
    model, given = new_model(), data()
    settings = params(max_steps=4, loss_spike=1.0)
    model.lm_head.weight.data[5] = math.nan
    with pytest.raises(Diverged) as raised:
        train(model, given, settings, Listener())
    kept = save_diverged(raised.value, given, folder)
    assert load_resume_state(folder) is None
    said = json.loads((kept / "diverged.json").read_text())
    assert said["step"] == 1
    assert "the update was not made" in said["reason"]
    assert said["rows_of_train_jsonl_from_0"] == given.train.rows[said["examples"]].tolist()
    batch = load_file(kept / "batch.safetensors")
    offsets = [numbers for name, numbers in batch.items() if name.endswith("offsets")]
    assert sum(len(numbers) - 2 for numbers in offsets) == 4, "the last two are of the padding"
    state = load_file(kept / "state.safetensors")
    assert {f"model.{name}" for name, _ in model.named_parameters()} <= set(state)
