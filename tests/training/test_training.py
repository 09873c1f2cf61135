"""What the training loop promises: steps, sums, schedule, and nothing touched by the side."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from simple_llama.data.batches import (
    MicroBatch,
    Plan,
    batch_by_size,
    collate,
    epoch_order,
    evenly_spaced,
    micro_batches,
    split_prompt_and_reply,
)
from simple_llama.data.tokens import Tokens
from simple_llama.errors import InputError
from simple_llama.model.decoder import Decoder
from simple_llama.training import gradients
from simple_llama.training.loop import train
from simple_llama.training.loss import score, summed_loss
from simple_llama.training.optimizer import AdamW, learning_rate
from simple_llama.training.preflight import Preflight
from simple_llama.training.state import (
    Diverged,
)
from tests.support.models import random_model, tiny_config
from tests.support.trainings import (
    PAD,
    ROOT,
    STOP,
    Listener,
    data,
    examples,
    new_model,
    params,
    run,
    short_of_memory,
)


@given(
    examples=st.integers(1, 60),
    step_examples=st.integers(1, 20),
    epochs=st.integers(1, 4),
    seed=st.integers(0, 5),
)
def test_every_example_once_per_epoch_the_last_partial_step_included(
    examples: int, step_examples: int, epochs: int, seed: int
) -> None:
    plan = Plan(
        num_examples=examples,
        examples_per_step=step_examples,
        seed=seed,
        epochs=epochs,
        max_steps=0,
    )
    for epoch in range(epochs):
        first = epoch * plan.steps_per_epoch
        seen = [plan.examples_at(step) for step in range(first, first + plan.steps_per_epoch)]
        assert sorted(np.concatenate(seen).tolist()) == list(range(examples))
        assert all(len(step) == step_examples for step in seen[:-1])
        done = len(np.unique(np.concatenate(seen[:2]))) if epoch == 0 else examples
        assert plan.examples_seen(min(first + 2, plan.steps)) == done
        assert plan.ends_epoch(first + plan.steps_per_epoch - 1)
    assert plan.steps == epochs * plan.steps_per_epoch


def test_each_epoch_has_another_order_and_the_same_seed_the_same() -> None:
    first, second = epoch_order(50, 1, 0), epoch_order(50, 1, 1)
    assert first.tolist() != second.tolist() != list(range(50))
    epoch_order.cache_clear()
    assert epoch_order(50, 1, 0).tolist() == first.tolist() != epoch_order(50, 2, 0).tolist()


@given(
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=40),
    budget=st.integers(1, 120),
    pad_to=st.sampled_from([None, 32]),
)
def test_micro_batches_hold_each_example_once_within_the_budget(
    lengths: list[int], budget: int, pad_to: int | None
) -> None:
    sizes = np.array(lengths)
    groups = batch_by_size(sizes, np.arange(len(sizes)), budget, pad_to)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(sizes)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(sizes[group].max(), pad_to or 0) <= budget


def test_targets_are_the_supervised_tokens_and_positions_lie_before_them() -> None:
    tokens = examples(6)
    batch = collate(tokens, np.arange(6), PAD, None)
    flat = batch.ids.flatten()
    found: dict[int, list[int]] = {}
    for position, target, row in zip(
        batch.positions, batch.targets, batch.example_index, strict=True
    ):
        found.setdefault(int(row), []).append(int(target))
        assert int(position) // batch.ids.shape[1] == row
        follows = int(position) + 1
        at_end = follows % batch.ids.shape[1] == 0
        assert at_end or target == STOP or flat[follows] == target
    for row in range(6):
        assert found[row] == split_prompt_and_reply(tokens, row)[1]


def plain_loss(model: Decoder, tokens: Tokens) -> float:
    """The mean over supervised tokens, one example at a time, by the definition."""
    total, count = 0.0, 0
    for i in range(len(tokens)):
        span = slice(tokens.starts[i], tokens.starts[i + 1])
        ids = torch.tensor(tokens.ids[span].astype(np.int64))
        mask = torch.tensor(tokens.mask[span]).bool()[1:]
        with torch.inference_mode():
            logits = model.logits(model(ids[None, :-1]))[0]
        total += F.cross_entropy(logits[mask], ids[1:][mask], reduction="sum").item()
        count += int(mask.sum())
    return total / count


def test_the_first_steps_loss_is_the_mean_over_supervised_tokens() -> None:
    given = data()
    expected = plain_loss(new_model().eval(), given.train)
    _, listener, _ = run(params(batch_size=22, epochs=1, warmup_iterations=0), given)
    assert listener.steps[0].loss == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "other",
    [
        {"micro_batch_tokens": 1},
        {"micro_batch_tokens": 70},
        {"batch_size": 2, "grad_accum_steps": 4},
        {"batch_size": 1, "grad_accum_steps": 8, "micro_batch_tokens": 50},
        {"dynamic_padding": False},
        {"use_flash_attention": False},
    ],
    ids=str,
)
def test_how_a_step_is_computed_does_not_change_it(other: dict[str, object]) -> None:
    """Short replies weigh no more in small micro-batches, and no trailing one is dropped."""
    model, listener, _ = run(params(batch_size=8))
    changed, heard, _ = run(params(**{"batch_size": 8, **other}))
    for mine, theirs in zip(listener.steps, heard.steps, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, abs=1e-5)
    for weights, others in zip(model.parameters(), changed.parameters(), strict=True):
        assert (weights - others).abs().max() < 1e-4


def test_full_validation_is_token_weighted_over_every_example() -> None:
    given = data()
    model, listener, result = run(params(epochs=1), given)
    step, loss, count, full = listener.validations[-1]
    assert (step, count, full) == (result.steps, 9, True)
    assert loss == result.val_loss == pytest.approx(plain_loss(model.eval(), given.val), abs=1e-5)


@settings(max_examples=10, deadline=None)
@given(budget=st.integers(1, 300))
def test_scores_do_not_depend_on_the_batch(budget: int) -> None:
    model, tokens = random_model(), examples(7)
    reference = score(model, tokens, np.arange(7), max_tokens=1, pad_id=PAD, precision="fp32")
    other = score(model, tokens, np.arange(7), max_tokens=budget, pad_id=PAD, precision="fp32")
    assert np.abs(reference.loss - other.loss).max() < 1e-4
    assert (reference.correct == other.correct).all()
    assert reference.tokens.tolist() == [
        len(split_prompt_and_reply(tokens, i)[1]) for i in range(7)
    ]


def test_scores_come_in_the_order_asked_for() -> None:
    model, tokens = random_model(), examples(7)
    wanted = np.array([5, 0, 3])
    some = score(model, tokens, wanted, max_tokens=60, pad_id=PAD, precision="fp32")
    every = score(model, tokens, np.arange(7), max_tokens=60, pad_id=PAD, precision="fp32")
    assert np.abs(some.loss - every.loss[wanted]).max() < 1e-4
    assert some.tokens.tolist() == every.tokens[wanted].tolist()


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_schedule_reaches_the_optimizer_to_its_last_step(schedule: str) -> None:
    settings = params(lr_schedule=schedule, min_lr=1e-4, epochs=3)
    _, listener, result = run(settings)
    rates = [record.lr for record in listener.steps]
    assert rates == [learning_rate(s, result.steps, settings) for s in range(result.steps)]
    assert rates[:2] == [5e-3, 1e-2]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(1e-4)


def test_a_constant_schedule_stays_at_max_lr() -> None:
    _, listener, _ = run(params(lr_schedule="constant"))
    assert {record.lr for record in listener.steps[1:]} == {1e-2}


def test_warmup_longer_than_training_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="warmup_iterations: got 13, wanted at most the 12"):
        run(params(warmup_iterations=13))


@pytest.mark.parametrize("limit", [{"max_steps": 5}, {"max_train_examples": 20, "epochs": 1}])
def test_a_limit_shortens_a_warmup_that_is_longer(limit: dict[str, int]) -> None:
    _, listener, result = run(params(warmup_iterations=50, lr_schedule="linear", **limit))
    steps = len(listener.steps)
    assert 1 < steps == result.steps <= 5
    assert result.examples == min(steps * 4, limit.get("max_train_examples", len(data().train)))
    rates = [record.lr for record in listener.steps]
    assert rates == pytest.approx([1e-2 * (step + 1) / steps for step in range(steps)])


def test_a_limit_leaves_a_warmup_that_fits() -> None:
    _, listener, _ = run(params(warmup_iterations=3, max_steps=5, lr_schedule="constant"))
    rates = [record.lr for record in listener.steps]
    assert rates == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2, 1e-2, 1e-2])


def test_the_update_is_pytorchs_and_norms_biases_and_embeddings_do_not_decay() -> None:
    model, expected = (Decoder(tiny_config(attention_bias=True, mlp_bias=True)) for _ in range(2))
    expected.load_state_dict(model.state_dict())
    made = params(weight_decay=0.1, max_lr=0.01)
    ours = AdamW(model, made)
    spared = {
        name: any(part in name for part in ("norm", "bias", "embed"))
        for name, _ in model.named_parameters()
    }
    theirs = torch.optim.AdamW(
        [
            {"params": [p], "weight_decay": 0.0 if spared[name] else 0.1}
            for name, p in expected.named_parameters()
        ],
        betas=(made.beta1, made.beta2),
        fused=True,
    )
    for step in range(3):
        ours.lr = 0.01 / (step + 1)
        for group in theirs.param_groups:
            group["lr"] = ours.lr
        for mine, other in zip(model.parameters(), expected.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=torch.Generator().manual_seed(step))
            other.grad = mine.grad.clone()
        ours.step()
        theirs.step()
    for (name, mine), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, other), name


@pytest.mark.slow
def test_a_training_starts_without_pytorchs_compiler() -> None:
    code = (
        "import sys; from tests.support.trainings import params, run; run(params(max_steps=1)); "
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_training_with_dropout_is_repeatable_and_sampling_leaves_no_trace() -> None:
    """Samples are drawn in eval mode, without gradients, from a generator of their own."""
    settings = params(dropout=0.3, eval_interval=3)
    quiet, _, _ = run(settings)
    again, _, _ = run(settings)
    sampling, listener, _ = run(replace(settings, sample_prompts=3, sample_temperature=1.0))
    assert listener.samples
    for a, b, c in zip(quiet.parameters(), again.parameters(), sampling.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_dropout_acts_in_training_only() -> None:
    model = new_model(dropout=0.5)
    batch = collate(examples(4), np.arange(4), PAD, None)
    assert summed_loss(model, batch).item() != summed_loss(model, batch).item()
    model.eval()
    assert summed_loss(model, batch).item() == summed_loss(model, batch).item()


def test_the_distance_between_samples_grows() -> None:
    settings = params(sample_prompts=2, eval_interval=2, model_gen_multiplier=2.0, epochs=4)
    _, listener, _ = run(settings)
    assert [step for step, _ in listener.samples] == [2, 6, 14]
    assert all(len(replies) == 2 for _, replies in listener.samples)


def test_interval_validation_uses_the_same_few_examples() -> None:
    _, listener, _ = run(params(eval_interval=5, eval_num_samples=4))
    few = [(step, count) for step, _, count, full in listener.validations if not full]
    assert few == [(0, 4), (5, 4), (10, 4)]
    assert evenly_spaced(9, 4).tolist() == [0, 3, 5, 8]
    assert evenly_spaced(3, 10).tolist() == [0, 1, 2]


def test_the_best_model_is_kept_not_the_last() -> None:
    """A learning rate that ruins the model later on: what was saved is the best of before."""
    model, listener, result = run(params(epochs=6, max_lr=0.3, lr_schedule="constant"))
    full = [(loss, step) for step, loss, _, full in listener.validations if full]
    assert (result.best_val_loss, result.best_step) == min(full)
    assert result.best_step < result.steps
    same = [
        torch.equal(kept, last)
        for kept, last in zip(listener.saved[-1], model.parameters(), strict=True)
    ]
    assert not all(same)


def test_early_stopping_waits_for_its_patience() -> None:
    settings = params(epochs=30, max_lr=0.3, lr_schedule="constant", early_stopping_patience=2)
    _, listener, result = run(settings)
    full = [loss for _, loss, _, full in listener.validations if full]
    best = full.index(min(full))
    assert len(full) == best + 1 + 2 < 30
    assert result.steps == len(full) * 6


def test_smoke_limits() -> None:
    _, listener, result = run(params(max_train_examples=7, epochs=50, max_steps=5))
    assert result.steps == len(listener.steps) == 5
    assert listener.plan.steps_per_epoch == 2
    assert listener.epochs == [1, 2], "a part of an epoch is none"
    assert listener.validations[-1][3], "the end is validated in full"
    assert math.isfinite(result.val_loss)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_the_update(poison: float) -> None:
    model = new_model()
    with torch.no_grad():
        model.lm_head.weight[5] = poison
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(Diverged, match="diverged at step 1: loss") as error:
        run(params(), model=model)
    assert error.value.examples.tolist() == epoch_order(22, 89, 0)[:4].tolist()
    for kept, parameter in zip(before, model.parameters(), strict=True):
        assert torch.equal(kept.nan_to_num(), parameter.detach().nan_to_num())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory"),
        (RuntimeError, "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_too_little_memory_means_smaller_micro_batches_and_the_same_loss(
    kind: type[RuntimeError], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = params(batch_size=8, micro_batch_tokens=600, packing=False)
    plain, heard, _ = run(settings)
    monkeypatch.setattr(gradients, "summed_loss", short_of_memory(100, kind, said))
    model, listener, _ = run(settings)
    assert listener.lowerings == [300, 150, 75]
    assert listener.preflight.micro_batch_tokens == 75, "found before the first step"
    for mine, theirs in zip(heard.steps, listener.steps, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, abs=1e-5)
    for weights, others in zip(plain.parameters(), model.parameters(), strict=True):
        assert (weights - others).abs().max() < 1e-4


def test_an_example_that_does_not_fit_alone_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    limited = short_of_memory(5, torch.OutOfMemoryError, "out of memory")
    monkeypatch.setattr(gradients, "summed_loss", limited)
    with pytest.raises(InputError, match=r"one example of .* tokens does not fit in memory"):
        run(params(batch_size=8))


def test_another_error_of_the_model_is_not_taken_for_too_little_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limited = short_of_memory(5, RuntimeError, "shapes do not fit")
    monkeypatch.setattr(gradients, "summed_loss", limited)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run(params())


def test_the_preflight_takes_the_longest_step_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = data()
    seen: list[list[int]] = []
    before = new_model(0.3)

    def recorded(model: Decoder, batch: MicroBatch) -> torch.Tensor:
        seen.append(batch.examples.tolist())
        return summed_loss(model, batch)

    monkeypatch.setattr(gradients, "summed_loss", recorded)

    class Stop(Listener):
        def on_preflight(self, preflight: Preflight) -> None:
            super().on_preflight(preflight)
            raise KeyboardInterrupt

    model, listener = new_model(0.3), Stop()
    with pytest.raises(KeyboardInterrupt):
        train(model, given, params(dropout=0.3), listener)
    assert int(np.argmax(given.train.lengths)) in {example for batch in seen for example in batch}
    assert listener.preflight.longest == given.train.lengths.max()
    assert listener.preflight.peak_memory > 0 < listener.preflight.seconds_left
    for mine, theirs in zip(before.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert theirs.grad is None


def test_a_loss_that_leaps_stops_before_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def leaping(model: Decoder, batch: MicroBatch) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return summed_loss(model, batch) * (1000.0 if calls > 2 + 25 else 1.0)

    monkeypatch.setattr(gradients, "summed_loss", leaping)
    settings = params(batch_size=22, epochs=40)
    listener = Listener()
    with pytest.raises(
        Diverged, match=r"at step 26: loss .* more than loss_spike \(10\) times"
    ) as it:
        train(new_model(), data(), replace(settings, loss_spike=10.0), listener)
    assert (len(listener.steps), it.value.step) == (25, 26)
    assert sorted(it.value.examples.tolist()) == list(range(22))
    calls = 0
    assert run(settings)[2].steps == 40, "loss_spike 0: any loss"


def test_a_micro_batch_goes_to_cuda_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: what PyTorch is asked for."""
    asked: list[str] = []

    def pinned(tensor: torch.Tensor) -> torch.Tensor:
        asked.append("pinned")
        return tensor

    def sent(tensor: torch.Tensor, device: torch.device, **how: bool) -> torch.Tensor:
        asked.append(f"{device} {how}")
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(torch.Tensor, "to", sent)
    batch = collate(examples(4), np.arange(4), PAD, None, packing=True)
    batch.to(torch.device("cuda"))
    assert asked == ["pinned", "cuda {'non_blocking': True}"] * 4
    asked.clear()
    batch.to(torch.device("cpu"))
    assert "pinned" not in asked


def test_training_learns_to_copy() -> None:
    _, listener, result = run(params(epochs=25, batch_size=8), data(60))
    assert result.train_loss < 0.5 * listener.steps[0].loss


def test_micro_batches_cover_a_step() -> None:
    tokens = examples(10)
    batches = list(micro_batches(tokens, np.arange(10), max_tokens=60, pad_id=PAD))
    assert sorted(i for batch in batches for i in batch.examples) == list(range(10))


def test_a_last_update_that_ruins_the_model_is_found_by_its_validation() -> None:
    settings = params(max_steps=1, warmup_iterations=0, max_lr=1e38, lr_schedule="constant")
    with pytest.raises(Diverged, match="diverged at step 1: validation loss nan") as error:
        run(settings, data(4, 9))
    assert sorted(error.value.examples.tolist()) == [0, 1, 2, 3], "the step's, not validation's"
