"""The contestants of the training benchmark train the same."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import (
    bench_losses,
    bench_settings,
    bench_training,
    results,
    textbook,
    trl_peer,
    workload,
)
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import contestants
from benchmarks.gpu.pipeline import STAGES, WEIGHTS, Pipeline
from simple_llama.model.config import ModelConfig
from simple_llama.training.state import TrainResult

SMALL = workload.SHAPES["0.5M"]
GROUPED = replace(SMALL, num_key_value_heads=2, vocab_size=9000, tie_word_embeddings=True)


@pytest.fixture(autouse=True)
def same_data_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIMPLE_LLAMA_DATA", raising=False)
    workload.tokens.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "packing"), [(SMALL, False), (GROUPED, True)])
def test_the_textbook_loop_has_our_losses(shape: ModelConfig, packing: bool) -> None:
    settings: dict[str, Any] = {"precision": "fp32", "packing": packing, "min_lr": 0.0}
    mine = bench_training.ours(4, 0.0, shape, **settings)
    still = bench_training.ours(4, 0.0, shape, **settings, max_lr=1e-9)
    theirs = textbook.train(4, 0.0, shape)
    assert [step.tokens for step in mine] == [step.tokens for step in theirs]
    assert [step.loss for step in mine] == pytest.approx([s.loss for s in theirs], abs=2e-5)
    assert abs(mine[3].loss - still[3].loss) > 1e-4, "what the updates change would show"


@pytest.mark.slow
def test_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "RESULTS.md"
    written.write_text("# Measured\n")
    monkeypatch.setattr(results, "RESULTS", written)
    monkeypatch.setattr(results, "installed", lambda package: None)
    memory, peaks = bench_training.memory, dict[str, int]()

    def once(name: str, *settings: Any) -> int:
        peaks[name] = peaks.get(name) or memory(name, *settings)
        return peaks[name]

    monkeypatch.setattr(bench_training, "memory", once)
    command = ["bench_training", "--rounds", "1", "--steps", "2", "--shape", "0.5M"]
    monkeypatch.setattr(sys, "argv", command)
    bench_training.main()
    table = written.read_text()
    assert "python -m benchmarks.bench_training --rounds 1" in table
    rows = re.findall(
        r"^  (ours|textbook) +[\d,]+ +[\d.]+ +\([\d.]+ to [\d.]+\) +[\d.]+ GB +\d+\.\d+ \d",
        table,
        re.M,
    )
    assert rows == ["ours", "textbook"] * 2


def test_transformers_model_has_our_weights() -> None:
    model = workload.new_model(0.0, GROUPED).eval()
    theirs = trl_peer.as_transformers(model, "cpu").eval()
    ids = torch.arange(9)[None]
    with torch.inference_mode():
        assert (model.logits(model(ids)) - theirs(ids).logits).abs().max() < 1e-4


@pytest.mark.slow
def test_contestants_on_a_gpu_train_the_same() -> None:
    """Of the command that measures one, on a CPU."""
    ways = [contestants.training(who, "cpu", "0.5M", 3) for who in ("ours", contestants.TEXTBOOK)]
    assert ways[0]["loss"] == pytest.approx(ways[1]["loss"], abs=2e-2), "bf16 and float32"
    assert ways[0]["note"] == "2,048 tokens at once"
    assert all(way["tokens a second"] > 0 for way in ways)


def test_a_large_vocabulary_is_measured() -> None:
    mine, plain = (
        contestants.vocabulary(who, "cpu", 64, 8, 20_000) for who in ("ours", contestants.PLAIN)
    )
    assert mine.keys() == plain.keys() == {"seconds", "bytes"}


def test_a_contestant_that_fails_or_takes_too_long_is_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = gpu.arguments(["--device", "cpu", "--small", "--limit", "0.01"])
    assert gpu.measured("matmul", settings) == "not done in 0.01 s"
    settings.limit = 100.0
    assert gpu.measured("nothing", settings) == "KeyError: 'nothing'"


def test_the_table_of_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever fails, the rest stands there."""
    written = tmp_path / "RESULTS.md"
    written.write_text("# Measured\n")
    monkeypatch.setattr(results, "RESULTS", written)
    figures = {
        "card": "A card",
        "flops": 1e14,
        "tokens a second": 1e4,
        "flops a token": 1e9,
        "until steady": 3.0,
        "loss": 9.0,
        "note": "",
        "peak": 10**9,
        "seconds": 0.1,
        "bytes": 10**9,
        "replies": [[1, 2], [3, 4]],
    }

    def measured(job: str, args: Any, **asked: Any) -> dict[str, Any] | str:
        return "not installed" if asked.get("who") == contestants.TRL else figures

    def refused(*_: Any, **__: Any) -> None:
        raise RuntimeError("stages.train: no room")

    monkeypatch.setattr(gpu, "measured", measured)
    monkeypatch.setattr(gpu, "Pipeline", refused)
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--shapes", "135M"])
    gpu.main()
    table = written.read_text()
    assert "A card; a bf16 product reaches 100 TFLOP/s" in table
    assert "failed: stages.train: no room" in table
    assert re.search(r"^  ours +10,000 +10.0% +1.00 GB +3.0 s   9.000", table, re.M)
    assert re.search(r"^  TRL, 1 x 32 +not installed$", table, re.M)
    assert re.search(
        r"^   512 prompts, transformers, static cache +10,000 tok/s, 2 replies alike$",
        table,
        re.M,
    )
    assert table.count("beyond weights and gradients") == 3


def test_the_pipeline_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which modules run, and how what they end with is told apart."""
    ran: list[str] = []
    pipeline = Pipeline(tmp_path, "cpu", 60.0, base_steps=3, max_steps=2)
    assert "max_steps: 2\n" in (tmp_path / "params.yaml").read_text()
    assert "max_steps: 3\n" in (tmp_path / "models/demo/params.yaml").read_text()

    def run(module: str, *_: str) -> tuple[float, str]:
        ran.append(module)
        if module == "stages.train":
            (tmp_path / WEIGHTS).parent.mkdir(parents=True, exist_ok=True)
            last = ran.count("stages.train") == 4
            save_file({"w": torch.tensor([1.0 + 0.5 * last])}, tmp_path / WEIGHTS)
        return 1.0, "a  ok\nb  ok\nmicro-batches of up to 7 tokens\n"

    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(pipeline, "killed", lambda: None)
    lines = list(pipeline.measure())
    assert ran[: len(STAGES) + 2] == [
        "models.demo.base",
        *(f"stages.{stage}" for stage in STAGES),
        "simple_llama.cli",
    ]
    assert "train 1.0 s; micro-batches of up to 7 tokens" in lines
    assert "verify 1.0 s: 2 hold, 0 do not" in lines
    assert lines[-2:] == [
        "deterministic: false: trained again the same bytes, "
        "killed and continued weights differ by up to 0.5",
        "deterministic: true: trained again the same bytes, killed and continued the same bytes",
    ]


def test_what_weights_are_held_in_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    def measured(processor: float, **changes: object) -> list[dict[str, Any]]:
        one = {
            "on": "cpu, bf16",
            "parameters": 94e6,
            "trained": 94e6,
            "seconds": 2.0,
            "processor": processor,
            "memory": 3e9,
        }
        return [{**one, **changes}] * 2

    found = {name: measured(4.0) for name in bench_settings.WAYS}
    found["lora_rank: 8, lora_base: nf4"] = measured(3.0, trained=2e6, memory=1e9)
    found["weights: bf16"] = [{"failed": "RuntimeError: out of memory"}] * 2
    bench_settings.report(found)
    table = capsys.readouterr().out
    assert table.startswith("94.0M parameters on cpu, bf16, adapters of 2.00M; steps of 512 tokens")
    assert re.search(
        r"^lora_rank: 8, lora_base: nf4 +1.00 GB +2,000 +0.75 \(0.75 to 0.75\)", table, re.M
    )
    assert re.search(r"^weights: bf16 +RuntimeError: out of memory$", table, re.M)
    assert len(table.splitlines()) == 3 + 16


@pytest.mark.slow
def test_what_rounding_costs_as_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All train, and what is rounded to the nearest is not what is rounded at random."""
    written = tmp_path / "RESULTS.md"
    written.write_text("# Measured\n")
    monkeypatch.setattr(results, "RESULTS", written)
    found: dict[str, float] = {}
    show = bench_losses.show

    def remember(name: str, result: TrainResult, first: TrainResult) -> None:
        found[name] = result.val_loss
        show(name, result, first)

    monkeypatch.setattr(bench_losses, "show", remember)
    command = "--shape 0.5M --steps 3 --examples 4 --validation 8"
    monkeypatch.setattr(sys, "argv", ["bench_losses", *command.split()])
    bench_losses.main()
    rows = re.findall(r"^(\S.*?) +[\d.]+ +([\d.]+) +[+-][\d.]+", written.read_text(), re.M)
    assert rows == [(name, f"{found[name]:.4f}") for name in bench_losses.WAYS]
    assert len({*found.values()}) == len(found)
