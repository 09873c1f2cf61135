"""dvc.yaml held against the code, and the real pipeline run on a tiny model."""

import json
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.tokens import Tokens
from simple_llama.model.folder import load_model
from simple_llama.params.base import BaseParams
from simple_llama.params.evaluate import EvaluateParams
from simple_llama.params.prepare import PrepareParams
from simple_llama.params.reading import Params
from simple_llama.params.tokenize import TokenizeParams
from simple_llama.params.train import TrainParams
from simple_llama.stage_code import list_code
from simple_llama.training.loss import score
from tests.support.models import logits_of
from tests.support.project import ROOT, Project

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
DEMO_FILE = ROOT / "models/demo/dvc.yaml"
# who has a model of their own may have removed it
DEMO = yaml.safe_load(DEMO_FILE.read_text())["stages"] if DEMO_FILE.exists() else {}


def names(*owners: type[Any]) -> set[str]:
    return {field.name for owner in owners for field in fields(owner)}


KEYS = {
    "prepare": names(PrepareParams),
    "tokenize": names(TokenizeParams),
    "baseline": names(EvaluateParams, BaseParams),
    "train": names(TrainParams, BaseParams),
    # the report shows all; those of train reach it with models/run.json
    "evaluate": names(EvaluateParams, BaseParams, PrepareParams, TokenizeParams),
}


@pytest.mark.parametrize("stage", KEYS)
def test_each_stage_lists_the_params_it_reads(stage: str) -> None:
    assert STAGES[stage]["params"] == sorted(KEYS[stage])


def test_each_stage_depends_on_its_code() -> None:
    entries = {name: f"stages.{name}" for name in STAGES if name != "code"}
    for name, entry in entries.items():
        assert f"data/code/{entry}.txt" in STAGES[name]["deps"]
        assert STAGES[name]["deps"] == sorted(STAGES[name]["deps"])
    assert STAGES["code"]["cmd"].split()[4:] == [*entries.values()]


def test_the_demo_names_its_own_files() -> None:
    if not DEMO:
        return
    files = [line.split("  ")[1] for line in list_code("models.demo.base").splitlines()]
    own = [file for file in files if file.startswith("models/")]
    assert DEMO["demo_code"]["deps"] == [*own, "simple_llama"]


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
        ("simple_llama.cli", ("torch", "mlflow", "matplotlib")),
        ("simple_llama.evaluation.report.page", ("torch", "mlflow", "matplotlib")),
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


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project.make(tmp_path_factory.mktemp("project"))
    project.run("dvc", "repro")
    project.commit("ran")
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
@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        (
            {
                "simple_llama/training/loop.py": "# said in other words\n",
                "simple_llama/cli.py": "MORE = 1\n",
            },
            ["code"],
        ),
        ({"simple_llama/evaluation/held_out.py": "MORE = 1\n"}, ["code", "baseline", "evaluate"]),
        ({"simple_llama/pages/style.css": "/* more */\n"}, ["code", "evaluate"]),
    ],
)
def test_a_change_of_code_reruns_the_stages_that_run_it(
    project: Project, changes: dict[str, str], stages: list[str]
) -> None:
    for module, addition in changes.items():
        path = project.root / module
        path.write_text(path.read_text() + addition)
    said = project.run("dvc", "repro")
    ran = [line for line in said.splitlines() if line.startswith("Running stage")]
    assert ran == [f"Running stage '{stage}':" for stage in stages]
    project.run("git", "checkout", "-q", "--", ".")
    project.run("dvc", "checkout")


@pytest.mark.slow
def test_a_stage_alone_keeps_no_result_of_code_that_is_not_listed(project: Project) -> None:
    loop = project.root / "simple_llama/training/loop.py"
    loop.write_text(loop.read_text() + "MORE = 1\n")
    project.set(sample_prompts=0, max_steps=3)
    before = (project.root / "dvc.lock").read_text()
    for command in (("repro", "-s", "train"), ("exp", "run", "-s", "train")):
        said = project.run("dvc", *command, fails=True)
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert "data/code/stages.train.txt: lists other code than this stage runs" in line
        assert "(simple_llama/training/loop.py), " in line
        assert "Traceback" not in said
        assert (project.root / "dvc.lock").read_text() == before
    (project.root / "simple_llama/training/.#loop.py").symlink_to("an-editor@here.1")
    project.run("dvc", "repro", "code")
    project.run("dvc", "repro", "-s", "train")
    assert (project.root / "dvc.lock").read_text() != before
    project.run("git", "checkout", "-q", "--", ".")
    project.run("dvc", "checkout")


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
    client = project.client()
    versions = [v.run_id for v in client.search_model_versions("name='simple_llama'")]
    for run_id, rate in ((before, "0.003"), (after, "1e-05")):
        run = client.get_run(run_id)
        metrics, tags = run.data.metrics, run.data.tags
        assert run.info.status == "FINISHED"
        assert run.data.params["max_lr"] == rate
        assert set(run.data.params) == set(Params(project.root / "params.yaml").values)
        losses = len(client.get_metric_history(run_id, "train/loss"))
        assert losses >= int(tags["best_step"]) > 0
        assert {name for name in metrics if "/" in name and not name.startswith("system/")} == {
            *("train/loss", "train/lr", "train/grad_norm", "train/tokens_per_second"),
            *("val/loss", "val/interval_loss"),
        }, "MLflow's sections: the curves"
        assert not [name for name in metrics if name.endswith(("examples", "tokens", "step"))]
        assert int(tags["eval_exact_match_examples"]) > 0
        assert 0 < metrics["train/lr"] <= float(rate), "small learning rates are not rounded away"
        artifacts = {artifact.path for artifact in client.list_artifacts(run_id)}
        assert {"config", "curves", "report.html", "samples"} <= artifacts
        assert "few.json" in [one.dataset.name for one in run.inputs.dataset_inputs]
        assert run_id in versions
    project.run("git", "checkout", "-q", "--", ".")
    project.run("dvc", "checkout", "train", "evaluate")


@pytest.mark.slow
def test_adapters_are_published_merged_and_for_peft(project: Project) -> None:
    assert list((project.root / "models/adapter").iterdir()) == []
    project.set(lora_rank=4, lora_targets="q_proj+up_proj", ckpt_epochs=1, precision="fp32")
    assert "of them trained)" in project.call("stages.train")
    tokens = Tokens.read(project.root / "data/tokens/val.safetensors")
    merged = load_model(project.root / "models/sft")
    scores = score(
        merged, tokens, np.arange(len(tokens)), max_tokens=640, pad_id=0, precision="fp32"
    )
    best = project.json("reports/train.json")["best_val_loss"]
    assert scores.mean_loss == pytest.approx(best, abs=1e-5)
    config = project.json("models/adapter/adapter_config.json")
    assert config["target_modules"] == ["q_proj", "up_proj"]
    assert config["base_model_name_or_path"] == str(project.root.resolve() / "base")
    assert (project.root / "models/checkpoints/epoch-01/config.json").exists()
    run = project.tracked()
    assert run.data.params["lora_rank"] == "4"
    assert float(run.data.tags["lora.merged_logits_differ_by"]) < 1e-5
    kept = Path(run.info.artifact_uri.removeprefix("file://"), "adapter")
    files = ["adapter_config.json", "adapter_model.safetensors"]
    assert sorted(path.name for path in kept.iterdir()) == files
    project.run("git", "checkout", "-q", "--", ".")
    project.run("dvc", "checkout", "--force", "train")


@pytest.mark.slow
def test_a_format_whose_tokens_the_base_lacks(project: Project, tmp_path: Path) -> None:
    """They are added, said, trained, published, and `transformers` computes the same with them."""
    import transformers

    shutil.copytree(project.root, tmp_path / "chatml", symlinks=True)
    other = Project(tmp_path / "chatml")
    other.set(prompt_format="chatml", epochs=1)
    for stage, line in (
        ("tokenize", "lacks <|im_start|>, <|im_end|>: added"),
        ("baseline", "grows from 400 to 402"),
        ("train", "grows from 400 to 402"),
        ("evaluate", "scoring models/sft"),
    ):
        assert line in other.call(f"stages.{stage}")
    assert "FAILED" not in other.call("simple-llama", "verify")
    folder = other.root / "models/sft"
    chat, tokenizer = ChatTokenizer.from_folder(folder), transformers.AutoTokenizer
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert theirs.generation_config.eos_token_id == chat.stop_id == chat.base_vocab_size + 1
    messages = [{"role": "user", "content": "What is the capital of Lusaria?"}]
    ids = tokenizer.from_pretrained(folder).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert ids == chat.prompt(messages) and max(ids) == chat.stop_id
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits
    mine = logits_of(load_model(folder).eval(), torch.tensor([ids]))
    assert (mine - expected).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "change", "said"),
    [
        ("prepare", {"ft_json_path": "data/raw/nowhere.json"}, "data/raw/nowhere.json"),
        ("prepare", {"max_lrs": "1"}, "unknown key 'max_lrs'"),
        ("tokenize", {"max_seq_len": 3}, "longer than max_seq_len"),
        ("train", {"warmup_iterations": 5000}, "warmup_iterations: got 5000, wanted at most the"),
        ("train", {"lora_targets": "query"}, "lora_targets: got 'query', wanted all-linear, or"),
        ("train", {"lora_rank": 17}, "lora_rank: got 17, wanted at most 8"),
        ("train", {"model_path": "tests"}, "no weights, wanted model.safetensors"),
        ("baseline", {"eval_json_path": "params.yaml"}, "params.yaml"),
        ("evaluate", {"eval_json_path": "params.yaml"}, "params.yaml"),
        ("evaluate", {"eval_json_path": "data/raw/few.json"}, "run `dvc repro baseline` first"),
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
        output = project.call(f"stages.{stage}", fails=True)
    finally:
        (project.root / "params.yaml").write_text(original)
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, output
    assert said in lines[0]
    assert "Traceback" not in output
    assert project.json("models/run.json") == runs


@pytest.mark.slow
def test_everything_again_gives_the_same_hashes(project: Project) -> None:
    before = outs_of(project)
    first = project.json("models/run.json")["run_id"]
    project.run("dvc", "repro", "-f")
    after = outs_of(project)
    assert project.json("models/run.json")["run_id"] != first, "it really trained again"
    different = {path for path in before if before[path] != after[path]}
    assert different == {"models/run.json"}
    project.run("git", "checkout", "-q", "--", ".")
    project.run("dvc", "checkout", "train", "evaluate")


def outs_of(project: Project) -> dict[str, str]:
    """Path and hash of every out in dvc.lock."""
    lock = yaml.safe_load((project.root / "dvc.lock").read_text())
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}


@pytest.mark.slow
def test_a_training_that_diverges_is_one_line_a_failed_run_and_a_folder_to_look_at(
    project: Project,
) -> None:
    original = (project.root / "params.yaml").read_text()
    project.set(max_lr=1e38, lr_schedule="constant", warmup_iterations=0)
    try:
        said = project.call("stages.train", fails=True)
    finally:
        (project.root / "params.yaml").write_text(original)
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "training diverged at step" in line
    assert "Traceback" not in said
    kept = Path(line.rpartition("kept for inspection: ")[2])
    assert {path.name for path in kept.iterdir()} == {
        "batch.safetensors",
        "diverged.json",
        "state.safetensors",
    }
    client = project.client()
    [run, *_] = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert run.info.status == "FAILED"
    assert run.data.tags["failure"].startswith("InputError: training diverged")
    state = project.root / kept.with_name(kept.name.removeprefix("diverged-"))
    assert not state.exists(), "it would diverge again"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("a full disk", "File too large"),
        ("no folder", ".resume"),
    ],
)
def test_a_disk_that_refuses_is_one_line(project: Project, trouble: str, said: str) -> None:
    resume = project.root / ".resume"
    shutil.rmtree(resume, ignore_errors=True)
    command = ["python", "-m", "stages.train"]
    if trouble == "no folder":
        resume.write_text("a file where the folder should be")
    else:
        # the weights are larger than any file may get
        command = [
            "sh",
            "-c",
            "ulimit -f 8; MLFLOW_TRACKING_URI=http://127.0.0.1:9 exec $0 $@",
            *command,
        ]
    output = project.run(*command, fails=True)
    if trouble == "no folder":
        resume.unlink()
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, output
    assert said in errors[0]
    assert "Traceback" not in output
