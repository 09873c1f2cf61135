"""What a training prints where there is no terminal."""

import pytest

from simple_llama.brief import passes
from simple_llama.data.batches import Plan
from simple_llama.training.console import Console
from simple_llama.training.state import Progress, StepRecord


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.002, "under 0.01"), (20 / 288, "0.06"), (0.29, "0.29"), (0.5, "0.5"),
     (1.0, "1"), (2.999, "2.99"), (12345.67, "12,345.67"), (1e6, "1,000,000")],
)  # fmt: skip
def test_passes_are_written_one_way(value: float, text: str) -> None:
    assert passes(value) == text


def record(step: int) -> StepRecord:
    return StepRecord(
        step=step, epoch=step / 288, loss=2.0, lr=1e-3, grad_norm=1.0, tokens=100, seconds=1.0
    )


def test_progress_shows_validations_of_what_was_trained_and_whole_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("simple_llama.training.console.LINE_SECONDS", 0.0)
    texts = {1: "You are a helpful assistant. " + "word " * 12 + "end", 2: "short", 3: "x" * 101}
    console = Console(lambda ids: texts[ids[0]])
    plan = Plan(num_examples=4608, examples_per_step=16, seed=0, epochs=1, max_steps=21)
    start = Progress(micro_batch_tokens=64, next_sample=1, sample_interval=1)
    console.on_train_begin(plan, start)
    console.on_validation(0, 7.581, 9, full=False)
    console.on_optimizer_step(record(20))
    console.on_validation(20, 3.25, 9, full=False)
    console.on_optimizer_step(record(21))
    console.on_samples(21, [[1], [2]], [[2], [3]])
    _, before, after, _, cut, whole = capsys.readouterr().out.splitlines()
    assert before.startswith("step 20/21  epoch 0.06  loss 2.000") and "val" not in before
    assert after.startswith("step 21/21  epoch 0.07") and "  val 3.250  " in after
    assert cut == "  ..." + ("word " * 12 + "end") + "  ->  short"
    assert whole == "  short  ->  " + "x" * 100 + "..."
