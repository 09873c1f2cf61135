"""The contestants of the training benchmark train the same."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_training, results, textbook, workload
from simple_llama.model.config import ModelConfig

SMALL = workload.SHAPES["0.5M"]
GROUPED = replace(SMALL, num_key_value_heads=2, vocab_size=9000, tie_word_embeddings=True)


@pytest.fixture(autouse=True)
def same_data_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIMPLE_LLAMA_DATA", raising=False)
    workload.tokens.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [SMALL, GROUPED], ids=["equal heads", "grouped and tied"])
@pytest.mark.parametrize("packing", [True, False])
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
