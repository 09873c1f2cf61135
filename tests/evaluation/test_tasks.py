"""Benchmarks of lm-evaluation-harness, with a task file of our own: no network."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from simple_llama.errors import InputError
from simple_llama.evaluation.tasks import TaskSettings, evaluate_tasks
from tests.support.project import Project

QUESTIONS: list[dict[str, Any]] = [
    {"question": f"What is {a} and {b}?", "choices": [str(a + b), str(a), "none"], "label": 0}
    for a in range(2, 5)
    for b in range(2, 5)
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A base and a tuned model, and a task."""
    project = Project.make(tmp_path_factory.mktemp("tasks"))
    project.run("dvc", "repro", "train")
    folder = project.root / "tasks"
    folder.mkdir()
    rows = "".join(f"{json.dumps(row)}\n" for row in QUESTIONS)
    (folder / "sums.jsonl").write_text(rows)
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "sums.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "sums.yaml").write_text(yaml.safe_dump(task))
    return project


def settings(**changes: object) -> TaskSettings:
    values = {
        "tasks": ["sums"],
        "include": "tasks",
        "limit": None,
        "chat_template": False,
        "device": "cpu",
        **changes,
    }
    return TaskSettings(**values)  # type: ignore[arg-type]


def accuracy(folder: Path, tokens: Path) -> float:
    """The same by hand: the choice whose tokens are the likeliest together."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tokens)
    right = 0
    for row in QUESTIONS:
        scores = []
        prompt = tokenizer(row["question"])["input_ids"]
        for choice in list(row["choices"]):
            whole = tokenizer(f"{row['question']} {choice}")["input_ids"]
            with torch.inference_mode():
                logits = model(torch.tensor([whole])).logits[0]
            shares = F.log_softmax(logits.float(), -1)
            places = range(len(prompt), len(whole))
            scores.append(sum(shares[at - 1, whole[at]].item() for at in places))
        right += scores.index(max(scores)) == row["label"]
    return right / len(QUESTIONS)


@pytest.mark.slow
def test_both_models_are_scored_and_the_run_has_it(project: Project) -> None:
    said = project.run(
        *("simple-llama", "evaluate", "--tasks", "sums", "--include", "tasks", "--device", "cpu"),
        *("--out", "tasks.json"),
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(project.root / "hf")},
    )
    scores = project.json("tasks.json")["scores"]
    tuned = project.root / "models/sft"
    for name, folder in (("base", project.root / "base"), ("tuned", tuned)):
        found, error = scores[name]["sums.acc"]
        assert found == pytest.approx(accuracy(folder, tuned)) and error > 0
        assert f"{found:.4f} ± {error:.4f}" in said
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{project.root}/mlflow.db")
    metrics = client.get_run(project.json("models/run.json")["run_id"]).data.metrics
    assert metrics["tasks/sums.acc"] == scores["tuned"]["sums.acc"][0]
    assert metrics["tasks/base_sums.acc"] == scores["base"]["sums.acc"][0]


@pytest.mark.slow
def test_mistakes_are_one_line(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    with pytest.raises(InputError, match=r"--tasks: no task 'sum' in lm-eval .* nor in tasks"):
        evaluate_tasks("models/sft", settings(tasks=["sums", "sum"]), None)
    with pytest.raises(InputError, match="models/sft"):
        evaluate_tasks("models/sft", settings(), "models/sft/scores.json")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match="needs lm-evaluation-harness, which is not installed"):
        evaluate_tasks("models/sft", settings(), None)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--data", "a.jsonl", "--tasks", "sums"],
        ["--data", "a.jsonl", "--limit", "3"],
        ["--tasks", "sums", "--prompt-format", "chatml"],
    ],
)
def test_options_that_do_not_go_together_are_named(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from simple_llama import cli

    monkeypatch.setattr(sys, "argv", ["simple-llama", "evaluate", *options])
    with pytest.raises(SystemExit) as error:
        cli.main()
    assert str(error.value.code).startswith("error: evaluate: wanted --data FILE")
