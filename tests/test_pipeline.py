"""dvc.yaml held against the code, and the real pipeline run on a tiny model."""

import ast
import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from models.demo.base import train_tokenizer
from models.demo.texts import documents
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.model.config import ModelConfig
from simple_llama.model.decoder import Decoder
from simple_llama.model.folder import load_model, save_model
from simple_llama.params import (
    PIPELINE,
    BaseParams,
    Params,
    PrepareParams,
    TokenizeParams,
    TrackingParams,
    TrainParams,
)
from tests.test_model import logits_of

ROOT = Path(__file__).parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
DEMO = yaml.safe_load((ROOT / "models/demo/dvc.yaml").read_text())["stages"]
EXEMPT = ("simple_llama/params.py", "simple_llama/errors.py", "simple_llama/tracking/")


def names(*owners: type[Any]) -> set[str]:
    return {field.name for owner in owners for field in fields(owner)}


KEYS = {
    "prepare": names(PrepareParams),
    "tokenize": names(TokenizeParams),
    "train": names(TrainParams, BaseParams),
    # the report shows them all
    "evaluate": names(*(owner for owner in PIPELINE if owner is not TrackingParams)),
}


@pytest.mark.parametrize("stage", KEYS)
def test_each_stage_lists_the_params_it_reads(stage: str) -> None:
    assert STAGES[stage]["params"] == sorted(KEYS[stage])


def imported(path: Path, seen: set[Path]) -> set[Path]:
    """The project's files that a file imports, directly or not."""
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            file = ROOT / (module.replace(".", "/") + ".py")
            if file.is_file() and file not in seen:
                seen.add(file)
                imported(file, seen)
    return seen


@pytest.mark.parametrize(
    ("entry", "stage"),
    [
        *((f"stages/{name}.py", stage) for name, stage in STAGES.items()),
        ("models/demo/base.py", DEMO["demo_base"]),
    ],
)
def test_each_stage_depends_on_every_module_it_imports(entry: str, stage: dict[str, Any]) -> None:
    files = {str(f.relative_to(ROOT)) for f in imported(ROOT / entry, {ROOT / entry})}
    wanted = {file for file in files if not file.startswith(EXEMPT)}
    assert {dep for dep in stage["deps"] if dep.endswith(".py")} == wanted
    assert stage["deps"] == sorted(stage["deps"])


def test_nothing_switches_the_run_cache_off() -> None:
    for stage in [*STAGES.values(), *DEMO.values()]:
        for out in stage["outs"]:
            assert isinstance(out, str), "outs are cached and not persistent"
        for kind in ("metrics", "plots"):
            for out in stage.get(kind, []):
                assert list(out.values()) == [{"cache": False}]


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("stages.prepare", ("torch", "mlflow", "tokenizers")),
        ("stages.tokenize", ("torch", "mlflow")),
        ("simple_llama.training.loop, simple_llama.evaluation.metrics", ("mlflow", "dvc")),
        ("simple_llama.cli", ("torch", "mlflow")),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(
    modules: str, heavy: tuple[str, ...]
) -> None:
    code = f"import {modules}, sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


class Project:
    """A copy of the tracked files as a git repository of its own, with a tiny base model."""

    def __init__(self, root: Path) -> None:
        self.root = root
        tracked = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for name in tracked:
            if (ROOT / name).is_file() and name not in ("dvc.lock",):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, root / name)
        rows = json.loads((ROOT / "data/raw/demo_sft.json").read_text())[:160]
        (root / "data/raw/few.json").write_text(json.dumps(rows))
        self.make_base()
        self.set(
            ft_json_path="data/raw/few.json",
            tokenizer_path="base/tokenizer.json",
            model_path="base",
            epochs=2,
            max_lr=0.003,
            eval_interval=4,
            warmup_iterations=2,
            exact_match_max_tokens=12,
            device="cpu",
        )
        for command in (["init", "-qb", "main"], ["add", "-A"], ["commit", "-qm", "start"]):
            self.run("git", "-c", "user.name=a", "-c", "user.email=a@b.c", *command)

    def make_base(self) -> None:
        folder = self.root / "base"
        folder.mkdir()
        texts = [text for text, _ in zip(documents(0), range(400))]
        train_tokenizer(texts, 400).save(str(folder / "bpe.json"))
        chat = ChatTokenizer.from_file(folder / "bpe.json", system_prompt="", model_max_length=256)
        chat.save(self.root / "tokenizer")
        config = ModelConfig(
            vocab_size=chat.vocab_size,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=256,
            rms_norm_eps=1e-5,
            rope_theta=1e4,
            tie_word_embeddings=True,
            attention_bias=False,
            mlp_bias=False,
        )
        model = Decoder(config)
        model.initialise(0)
        save_model(model, folder, self.root / "tokenizer")
        shutil.rmtree(self.root / "tokenizer")

    def set(self, **values: object) -> None:
        path = self.root / "params.yaml"
        lines = path.read_text().splitlines()
        for key, value in values.items():
            at = next(i for i, line in enumerate(lines) if line.startswith(f"{key}:"))
            lines[at] = f"{key}: {value}"
        path.write_text("\n".join(lines) + "\n")

    def run(self, *command: str, fails: bool = False) -> str:
        """Standard output and error of a command that ends well, or with exit code 1."""
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_"))},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "DVC_NO_ANALYTICS": "1",
        }
        done = subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def json(self, name: str) -> Any:
        return json.loads((self.root / name).read_text())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("project"))
    project.run("dvc", "repro")
    project.run("git", "add", "-A")
    project.run("git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "ran")
    return project


CONTRACT = {
    "prepare": "examples kept rejected duplicates train val rejected_by_reason",
    "tokenize": "train_examples val_examples dropped_too_long tokens supervised_tokens "
    "unknown_token_rate length_p50 length_p95 length_max",
    "train": "steps epochs train_loss val_loss best_val_loss best_step",
    "eval": "val_loss val_perplexity val_token_accuracy exact_match exact_match_examples "
    "base_val_loss base_token_accuracy base_exact_match examples supervised_tokens data "
    "by_category",
}


@pytest.mark.slow
def test_the_reports_keep_their_keys_and_agree_with_each_other(project: Project) -> None:
    reports = {name: project.json(f"reports/{name}.json") for name in CONTRACT}
    for name, keys in CONTRACT.items():
        assert set(keys.split()) <= set(reports[name])
    tokens, evaluation = reports["tokenize"], reports["eval"]
    assert evaluation["examples"] == tokens["val_examples"]
    assert evaluation["val_loss"] == pytest.approx(reports["train"]["best_val_loss"], abs=1e-5)
    assert evaluation["val_loss"] < evaluation["base_val_loss"]
    by_category = evaluation["by_category"].values()
    assert sum(row["examples"] for row in by_category) == evaluation["examples"]
    scored = evaluation["exact_match_examples"]
    assert sum(row["exact_match_examples"] for row in by_category) == scored > 0
    samples = [
        json.loads(line)
        for line in (project.root / "models/samples.jsonl").read_text().splitlines()
    ]
    assert len([sample for sample in samples if sample["match"] is not None]) == scored
    assert (project.root / "models/report.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.slow
def test_a_second_repro_runs_nothing_and_git_stays_clean(project: Project) -> None:
    said = project.run("dvc", "repro")
    assert "Data and pipelines are up to date." in said
    assert "Running stage" not in said
    assert project.run("git", "status", "--porcelain") == ""


@pytest.mark.slow
def test_the_published_model_is_transformers_own(project: Project) -> None:
    import transformers

    folder = project.root / "models/sft"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "What is the capital of Lusaria?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == ChatTokenizer.from_folder(folder).prompt(messages)
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits
    mine = logits_of(load_model(folder).eval(), torch.tensor([ids]))
    assert (mine - expected).abs().max() < 1e-4
    assert (
        theirs.generation_config.eos_token_id
        == tokenizer.eos_token_id
        == tokenizer("<EOA>", add_special_tokens=False)["input_ids"][0]
    )


@pytest.mark.slow
def test_a_learning_rate_reruns_train_and_evaluate_and_reaches_mlflow(project: Project) -> None:
    before = project.json("models/run.json")["run_id"]
    said = project.run("dvc", "exp", "run", "-S", "max_lr=1e-5")
    ran = [line for line in said.splitlines() if line.startswith("Running stage")]
    assert ran == ["Running stage 'train':", "Running stage 'evaluate':"]
    after = project.json("models/run.json")["run_id"]
    code = (
        "import mlflow, json; mlflow.set_tracking_uri('sqlite:///mlflow.db'); "
        "client = mlflow.MlflowClient(); "
        f"runs = [client.get_run(i) for i in ({before!r}, {after!r})]; "
        "versions = client.search_model_versions(\"name='simple_llama'\"); "
        "print(json.dumps([[r.info.status, r.data.params, r.data.metrics, "
        "[a.path for a in client.list_artifacts(r.info.run_id)], "
        "len(client.get_metric_history(r.info.run_id, 'loss')), "
        "[i.dataset.name for i in r.inputs.dataset_inputs], "
        "[v.run_id for v in versions]] for r in runs]))"
    )
    found = json.loads(project.run("python", "-c", code).splitlines()[-1])
    for run_id, rate, row in zip((before, after), ("0.003", "1e-05"), found, strict=True):
        status, params, metrics, artifacts, losses, datasets, versions = row
        assert status == "FINISHED"
        assert params["max_lr"] == rate
        assert set(params) == set(Params(project.root / "params.yaml").values)
        assert losses == metrics["best_step"] or losses > metrics["best_step"]
        assert {"loss", "lr", "grad_norm", "tokens_per_second", "val_loss"} <= set(metrics)
        assert metrics["eval_exact_match_examples"] > 0
        assert 0 < metrics["lr"] <= float(rate), "small learning rates are not rounded away"
        assert {"config", "curves", "report.html", "samples"} <= set(artifacts)
        assert "few.json" in datasets
        assert run_id in versions
    project.run("git", "checkout", "-q", "--", ".")
    project.run("dvc", "checkout", "train", "evaluate")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "change", "said"),
    [
        ("prepare", {"ft_json_path": "data/raw/nowhere.json"}, "data/raw/nowhere.json"),
        ("prepare", {"max_lrs": "1"}, "unknown key 'max_lrs'"),
        ("tokenize", {"max_seq_len": 3}, "longer than max_seq_len"),
        ("train", {"warmup_iterations": 5000}, "warmup_iterations: got 5000, wanted at most the"),
        ("train", {"model_path": "tests"}, "no weights, wanted model.safetensors"),
        ("evaluate", {"eval_json_path": "params.yaml"}, "params.yaml"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(
    project: Project, stage: str, change: dict[str, Any], said: str
) -> None:
    original = (project.root / "params.yaml").read_text()
    runs = project.json("models/run.json")
    try:
        if "max_lrs" in change:
            (project.root / "params.yaml").write_text(original + "max_lrs: 1\n")
        else:
            project.set(**change)
        output = project.run("python", "-m", f"stages.{stage}", fails=True)
    finally:
        (project.root / "params.yaml").write_text(original)
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, output
    assert said in lines[0]
    assert "Traceback" not in output
    assert project.json("models/run.json") == runs
