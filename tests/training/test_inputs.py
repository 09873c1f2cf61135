"""A training is continued, and its result shared, only where every input is the same."""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from simple_llama.params.base import BaseParams
from simple_llama.params.reading import Params
from simple_llama.params.train import TrainParams
from simple_llama.stage_code import list_code
from simple_llama.training.inputs import NOT_IN_KEY, TrainingInputs
from tests.support.project import ROOT, Project

MACHINE = {"device": "cpu AVX2", "precision": "fp32", "deterministic": "true"}
DEPS = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["train"]["deps"]
with contextlib.chdir(ROOT):
    CODE = [line.split("  ")[1] for line in list_code("stages.train").splitlines()]
BASE = (
    "config.json",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "added_tokens.json",
    "special_tokens_map.json",
)
TOKENS = (
    "train.safetensors",
    "val.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/chat_template.jinja",
    "tokenizer/generation_config.json",
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's files, with a base model and tokens that are text."""
    monkeypatch.chdir(tmp_path)
    for name in ("dvc.yaml", "params.yaml", "requirements.lock"):
        shutil.copyfile(ROOT / name, name)
    for name in ("simple_llama", "stages"):
        shutil.copytree(ROOT / name, name, ignore=shutil.ignore_patterns("__pycache__"))
    for folder, names in (("models/demo/base", BASE), ("data/tokens", TOKENS)):
        for name in names:
            Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
            Path(folder, name).write_text(name)
    return tmp_path


def key(params: Params | None = None, machine: dict[str, str] = MACHINE) -> str:
    return TrainingInputs.read(params or Params(), machine).key


def files() -> Iterator[Path]:
    """Every file that dvc.yaml says train reads."""
    for dep in DEPS:
        path = Path(dep.replace("${model_path}", "models/demo/base"))
        if path.parent == Path("data/code"):
            yield from map(Path, CODE)
        else:
            yield from filter(Path.is_file, path.rglob("*")) if path.is_dir() else [path]


def test_another_byte_in_any_file_is_another_training(project: Path) -> None:
    before = key()
    assert key() == before
    changed = list(files())
    assert len(changed) >= len(BASE) + len(TOKENS) + len(CODE) + 1
    for path in changed:
        content = path.read_bytes()
        path.write_bytes(content + b"\n0")
        assert key() != before, path
        path.write_bytes(content)
    assert key() == before


def test_a_file_more_or_less_or_of_another_name_is_another_training(project: Path) -> None:
    before, base = key(), Path("models/demo/base")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates/tool_use.jinja").write_text("x")
    assert key() != before
    shutil.rmtree(base / "additional_chat_templates")
    assert key() == before
    (base / "generation_config.json").rename(base / "other.json")
    assert key() != before
    (base / "other.json").rename(base / "generation_config.json")
    first, second = (base / f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert key() != before, "two shards that changed their names"


def test_a_checkpoint_file_is_an_input_too(project: Path) -> None:
    params, path = Params(), Path("base.pth")
    params.values["model_path"] = str(path)
    path.write_bytes(b"one")
    before = key(params)
    path.write_bytes(b"two")
    assert key(params) != before


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else f"{value}x"


def test_another_value_of_any_param_is_another_training(project: Path) -> None:
    before, seen = key(), set()
    shutil.copytree("models/demo/base", "models/demo/basex")
    names = {
        field.name for owner in (TrainParams, BaseParams) for field in dataclasses.fields(owner)
    }
    for name in sorted(names):
        params = Params()
        params.values[name] = other(params.values[name])
        seen.add(key(params))
        assert (key(params) == before) == (name in NOT_IN_KEY), name
    assert len(seen) == len(names)


def test_another_pytorch_or_device_is_another_training(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key()
    for name in MACHINE:
        assert key(machine=MACHINE | {name: "other"}) != before
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    assert key() != before


@pytest.mark.slow
def test_what_is_published_is_of_the_inputs_as_they_are_now(tmp_path: Path) -> None:
    """The state of a training that has ended is still there: it is what the next one, of the same
    key, takes over."""
    project = Project.make(tmp_path)
    project.set(epochs=1, max_steps=3)
    for stage in ("prepare", "tokenize", "train"):
        project.call(f"stages.{stage}")
    loss = project.json("reports/train.json")["best_val_loss"]
    config = project.json("base/config.json")
    config["rope_parameters"]["rope_theta"] = config["rope_theta"] = 500.0
    (project.root / "base/config.json").write_text(json.dumps(config))
    path = project.root / "data/tokens/tokenizer/tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings["chat_template"] = "{# another #}" + settings["chat_template"]
    path.write_text(json.dumps(settings))
    assert "continuing" not in project.call("stages.train")
    assert project.json("models/sft/config.json")["rope_theta"] == 500.0
    assert project.json("models/sft/tokenizer_config.json") == settings
    assert project.json("reports/train.json")["best_val_loss"] != loss
