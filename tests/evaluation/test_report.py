"""The report page: safe, self-contained, the same every time, and whole on the strangest input."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import string
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError

from simple_llama.brief import brief
from simple_llama.evaluation.dataset import CHOSE_BEST
from simple_llama.evaluation.report.contents import chosen_from, learning_rate
from simple_llama.evaluation.report.page import SAMPLES_KEPT, ReportInput, render
from simple_llama.evaluation.report.scorecard import moved, wilson_interval
from simple_llama.pages.charts import Series, line_chart, tick_text
from simple_llama.pages.numbers import decimal, percent
from simple_llama.pages.points import finite_points, smooth, thin
from simple_llama.pages.template import fill, printable
from simple_llama.params.evaluate import VALIDATION_SPLIT
from simple_llama.stage_code import DATA_SUFFIXES
from tests.support.page import Page
from tests.support.project import ROOT


def example(**changes: Any) -> ReportInput:
    report = ReportInput(
        prepare={
            "examples": 3600,
            "kept": 3401,
            "rejected": 57,
            "duplicates": 142,
            "train": 2921,
            "val": 480,
            "rejected_by_reason": {"reply is empty": 31, "not an object": 26},
            "val_prompts_like_train": 0.2375,
        },
        tokenize={
            "train_examples": 2915,
            "val_examples": 478,
            "dropped_too_long": 8,
            "tokens": 412345,
            "supervised_tokens": 98211,
            "unknown_token_rate": 0.0002,
            "length_p50": 82,
            "length_p95": 260,
            "length_max": 412,
        },
        train={
            "steps": 90,
            "epochs": 3.0,
            "examples": 2915,
            "best_val_loss": 0.808,
            "best_step": 60,
        },
        evaluation={
            "val_loss": 0.811,
            "val_perplexity": 2.25,
            "val_token_accuracy": 0.782,
            "exact_match": 0.613,
            "exact_match_examples": 448,
            "base_val_loss": 2.357,
            "base_token_accuracy": 0.431,
            "base_exact_match": 0.031,
            "examples": 478,
            "supervised_tokens": 15402,
            "data": "Evaluated on the validation split.",
            "by_category": {"arithmetic": category(300), "spelling": category(178)},
        },
        train_curve=[
            {"step": s, "epoch": s / 30, "loss": 2 / s + 0.7, "lr": 3e-4 / s, "grad_norm": 1.0}
            for s in range(1, 91)
        ],
        val_curve=[{"step": s, "loss": 2.3 - s / 60} for s in range(0, 91, 30)],
        lengths=[(1, 64, 900), (65, 128, 1500), (129, 412, 993)],
        supervised=(89123, 371110),
        samples=[sample(prompt="What is 17 + 25?", reference="42", base="17 17", tuned="42")],
        worst=[hard()],
        params={
            "model_path": "models/demo/base",
            "max_lr": 3e-4,
            "eval_json_path": VALIDATION_SPLIT,
        },
        facts={"Base model": "models/demo/base, 1.0M parameters"},
    )
    return dataclasses.replace(report, **changes)


def category(examples: int) -> dict[str, Any]:
    return {
        "examples": examples,
        "val_loss": 0.61,
        "base_val_loss": 2.45,
        "exact_match_examples": examples,
        "exact_match": 0.7125,
        "base_exact_match": None,
    }


def sample(**changes: Any) -> dict[str, Any]:
    plain = {"category": "arithmetic", "prompt": "p", "reference": "r", "base": "b", "tuned": "t"}
    return plain | {"match": True, "base_match": False} | changes


def hard(**changes: Any) -> dict[str, Any]:
    plain = {"id": "a.json[7]", "category": "spelling", "reference": "wrong", "tokens": 3}
    plain["prompt"] = "What is it?"
    return plain | {"loss": 9.25, "base_loss": 8.5} | changes


def empty() -> ReportInput:
    return ReportInput(
        prepare={},
        tokenize={},
        train={},
        evaluation={},
        train_curve=[],
        val_curve=[],
        lengths=[],
        supervised=(None, None),
        samples=[],
        worst=[],
        params={},
        facts={},
    )


def test_shows_what_it_was_given() -> None:
    text = Page(render(example())).text
    assert (
        "Fine-tuned models/demo/base on 2,915 training examples (90 steps, 3 epochs). "
        "Validation loss fell from 2.357 to 0.811, exact match rose from 3.1% to 61.3%." in text
    )
    assert "65.6% lower, better" in text
    assert "+58.2 points, better" in text
    assert "Evaluated on the validation split." in text
    assert "best: step 60" in text
    assert "arithmetic 300 2.450 0.610 – 71.2% 300" in text
    assert "− rejected 57 reply is empty 31 not an object 26 − duplicates 142 = kept 3,401" in text
    assert "23.8% of the validation prompts differ from a prompt of the training split only" in text
    assert "Supervised in the training split 89,123 tokens of 371,110 (24.0%)" in text
    assert "Validation loss was lowest, 0.808, after step 60" in text and "merged" not in text
    assert "a.json[7] spelling 9.250 8.500 3 What is it? wrong" in text
    assert "0.02%" in text
    assert "models/demo/base, 1.0M parameters" in text
    assert "Reference 42 Base model ✗ differs 17 17 Tuned model ✓ matches 42" in text
    assert "max_lr 3e-4 eval_json_path data/prepared/val.jsonl" in text


def test_sections_stand_in_the_order_of_the_story() -> None:
    html = render(example())
    titles = re.findall(r"<h2>(.*?)</h2>", html)
    assert titles == [
        "What was trained on what",
        "Training",
        "By category",
        "Length",
        "Where the data went",
        "Highest losses",
        "Samples",
        "Parameters",
    ]
    assert html.index('class="lead"') < html.index('class="big"') < html.index("<h2>")


def test_same_input_same_bytes() -> None:
    assert render(example()) == render(example())


def test_hostile_text_stays_text() -> None:
    evil = "<script>alert(\"x\")</script><img src=x onerror='y'>\"'&amp;</div></title><!--"
    row = sample(prompt=evil, reference=evil, base=evil, tuned=evil * 99, category=evil)
    report = example(
        samples=[row],
        worst=[hard(id=evil, category=evil, reference=evil)],
        params={evil: evil, "model_path": evil},
        facts={evil: evil},
        prepare={"rejected_by_reason": {evil: 3}},
        evaluation={"data": evil, "by_category": {evil: category(3)}},
    )
    html = render(report)
    page = Page(html)
    plain = {tag for tag, _ in Page(render(example())).tags}
    assert {tag for tag, _ in page.tags} <= plain | {"details", "summary"}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert "<!--" not in html
    assert page.text.count('<script>alert("x")</script>') >= 12  # shown, and as written


def test_samples_are_filtered_by_style_alone() -> None:
    rows = [
        sample(match=False),
        sample(category="spelling", match=True),
        sample(category=None, match=None),
    ]
    html = render(example(samples=rows, params={"exact_match_max_tokens": 32}))
    assert "Not scored: the reference is longer than exact_match_max_tokens (32 tokens)." in html
    assert html.count("not scored") == 1 and "Not scored" not in render(example())
    marks = [
        (attrs["data-category"], attrs["data-match"])
        for tag, attrs in Page(html).tags
        if tag == "article"
    ]
    assert marks == [("1", "no"), ("2", "yes"), ("0", "none")]
    assert '<option value="1">arithmetic</option><option value="2">spelling</option>' in html
    for number in (1, 2):
        rule = f'option[value="{number}"]:checked) .sample:not([data-category="{number}"])'
        assert rule in html
    assert "#differs:checked) .sample:not([data-match=no]){display:none}" in html
    assert "<select" not in render(example(samples=[sample(category=None)])), "nothing to choose"


def test_what_cannot_be_seen_is_spelt_out() -> None:
    """Also what would turn the text around it, in every place of the page; what scripts are written
    with stays."""
    evil, written = "a\u202egnp\u2066\ufeff", "a<U+202E>gnp<U+2066><U+FEFF>"
    row = sample(prompt=evil, reference=evil, base=evil, tuned="a\ud800b\x00c\r\nd", category=evil)
    html = render(
        example(
            samples=[row],
            worst=[hard(id=evil, category=evil, reference=evil)],
            params={evil: evil, "model_path": evil},
            facts={evil: evil, "Persian": "می\u200cخواهم", "Hebrew": "שלום\u200f!"},
            prepare={"rejected_by_reason": {evil: 3}},
            evaluation={"data": evil, "by_category": {evil: category(3)}},
        )
    )
    text = Page(html).text
    assert "a<U+D800>b<U+0000>c d" in text
    assert not re.search("[\u2028-\u202e\u2066-\u2069\ufeff]", html)
    assert text.count(written) >= 14 and "می\u200cخواهم" in text and "שלום\u200f!" in text
    html.encode("utf-8")


def test_asks_the_network_for_nothing() -> None:
    html = render(example(samples=[sample(prompt="see https://example.org/x")]))
    for tag, attrs in Page(html).tags:
        assert tag not in {"script", "link", "iframe", "img", "object", "embed", "base", "a"}
        assert not {"src", "href", "srcset", "xlink:href", "action", "background"} & set(attrs)
        assert "url(" not in (attrs.get("style") or "")
    style = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert len(style) == 2, "of the page and of the samples' filter"
    assert not [text for text in style if "url(" in text or "@import" in text]


def test_nothing_at_all_still_makes_a_page() -> None:
    text = Page(render(empty())).text
    assert "Validation loss was not measured" in text
    assert "Nothing to draw." in text
    assert "No samples were taken." in text
    assert "nan" not in text.lower().split()


@pytest.mark.parametrize(
    "bad", [math.nan, math.inf, -math.inf, None, 10**400, "text", 0, -1], ids=lambda v: str(v)[:9]
)
def test_any_number_may_be_bad(bad: Any) -> None:
    def spoil(values: Any) -> Any:
        return {k: spoil(v) if isinstance(v, dict) else bad for k, v in values.items()}

    report = example()
    curve = [*report.train_curve, dict.fromkeys(report.train_curve[0], bad)]
    spoiled = example(
        prepare=spoil(report.prepare),
        tokenize=spoil(report.tokenize),
        train=spoil(report.train),
        evaluation=spoil(report.evaluation),
        train_curve=curve,
        val_curve=[{"step": bad, "loss": bad}],
    )
    drawn = [value for _, attrs in Page(render(spoiled)).tags for value in attrs.values() if value]
    assert not [v for v in drawn if re.search(r"\b(nan|inf)\b", v)]


def test_points_left_out_are_owned_up_to() -> None:
    curve = [{"step": s, "loss": math.nan if s == 3 else 1.0} for s in range(9)]
    text = Page(render(example(train_curve=curve))).text
    assert "1 value is absent or not finite." in text


def test_nothing_scored_is_not_zero() -> None:
    scores = {"val_loss": 0.8, "exact_match": None, "exact_match_examples": 0}
    text = Page(render(example(evaluation=scores))).text
    assert "exact match was not measured" in text
    assert "No reference answer was short enough to be scored." in text
    assert "0.0%" not in text


def test_a_worse_model_is_called_worse() -> None:
    scores = {
        "base_val_loss": 1.0,
        "val_loss": 1.5,
        "base_exact_match": 0.25,
        "exact_match": 0.0,
        "exact_match_examples": 20,
    }
    text = Page(render(example(evaluation=scores))).text
    assert "Validation loss rose from 1.000 to 1.500, exact match fell from 25.0% to 0.0%" in text
    assert "50.0% higher, worse" in text
    assert "−25.0 points, worse" in text


def test_held_out_data_is_not_called_validation() -> None:
    report = example(params={"eval_json_path": "data/raw/test.json"})
    assert "Held-out loss fell from" in Page(render(report)).text


def test_a_ledger_that_does_not_add_up_says_so() -> None:
    report = example()
    assert "do not add up" not in render(report)
    assert "do not add up" in render(example(prepare={**report.prepare, "kept": 3400}))


@pytest.mark.parametrize(
    ("train", "said", "ledger"),
    [
        ({"steps": 3, "epochs": 0.0333, "examples": 97},
         "on 97 of 2,915 training examples (3 steps, 0.03 epochs).",
         "− longer than max_seq_len 8 − seen by no step 2,818 = trained on 97 = validated on 478"),
        ({"steps": 1, "epochs": 1.0, "examples": 20},
         "on 20 of 2,915 training examples (1 step, 1 epoch).", "= trained on 20"),
        ({"steps": 89, "epochs": 2.999, "examples": 2915},
         "on 2,915 training examples (89 steps, 2.99 epochs).", "max_seq_len 8 = trained on 2,915"),
        ({"steps": 2, "epochs": 0.002, "examples": 64}, "(2 steps, under 0.01 epochs).", "on 64"),
        ({}, "Fine-tuned models/demo/base. Val", "= trained on – = validated on 478"),
    ],
)  # fmt: skip
def test_what_no_step_saw_was_not_trained_on(
    train: dict[str, float], said: str, ledger: str
) -> None:
    text = Page(render(example(train=train))).text
    assert said in text and ledger in text


def test_an_epoch_of_fewer_examples_says_of_how_many() -> None:
    report = example(
        train={"steps": 1, "epochs": 0.29, "examples": 16}, params={"max_train_examples": 40}
    )
    text = Page(render(report)).text
    assert "on 16 of 2,915 training examples (1 step, 0.29 epochs of 40)." in text


def test_a_cut_training_is_not_said_to_have_chosen_or_seen_more() -> None:
    curve = example().val_curve
    report = example(train={"steps": 1, "examples": 16, "best_val_loss": 6.984, "best_step": 1})
    text = Page(render(dataclasses.replace(report, val_curve=curve[:1]))).text
    assert "Validation loss was 6.984, after step 1" in text
    assert "a prompt of the training split (whether or not a step saw it) only in digits" in text
    adapted = Page(render(example(params={"lora_rank": 8}))).text
    assert (
        "before the adapters were merged into the weights; the scores are of the merged" in adapted
    )
    assert chosen_from(CHOSE_BEST, 1) == "There was one checkpoint, so it chose none."
    assert chosen_from(CHOSE_BEST, 2) == CHOSE_BEST


@pytest.mark.parametrize(
    ("schedule", "rates", "said"),
    [
        ("cosine", [1e-3, 2e-3, 1e-3, 1e-6], "2e-3, falling to 1e-6 (cosine)"),
        ("cosine", [1e-3, 2e-3], "rising to 2e-3: every step was one of the warmup"),
        ("linear", [2e-3], "rising to 2e-3: every step was one of the warmup"),
        ("cosine", [1e-3, 2e-3, 2e-3], "2e-3"),
        ("constant", [1e-3, 2e-3, 2e-3, 2e-3], "2e-3"),
    ],
)
def test_the_learning_rate_is_what_the_steps_had(
    schedule: str, rates: list[float], said: str
) -> None:
    assert learning_rate({"lr_schedule": schedule, "warmup_iterations": 2}, rates) == said


def test_a_curve_of_few_steps_is_not_smoothed() -> None:
    curve = example().train_curve
    assert "smoothed" in Page(render(example())).text
    assert "smoothed" not in Page(render(example(train_curve=curve[:3]))).text


def test_the_ledger_counts_every_example() -> None:
    """Those that a conversation makes besides, copies, and what the format refused, too."""
    report = example()
    prepare = {**report.prepare, "repeated": 5, "left_out": 2, "untrained": 1}
    tokenize = {**report.tokenize, "train_examples": 3000, "dropped_refused": 3}
    text = Page(render(example(prepare=prepare, tokenize=tokenize, train={"examples": 3000}))).text
    assert (
        "for validation 480 + copies by mixture.yaml 5 + from conversations that make several 83 "
        "− longer than max_seq_len 8 − refused by the prompt format 3 = trained on 3,000" in text
    )
    assert "2 more are left out by mixture.yaml. 1 more are excluded by their own flags." in text


def test_size_does_not_follow_the_number_of_steps() -> None:
    def long(steps: int) -> str:
        curve = [
            {"step": s, "loss": 1 + math.sin(s), "lr": 1e-4, "grad_norm": 1 + math.cos(s)}
            for s in range(steps)
        ]
        return render(example(train_curve=curve, val_curve=[{"step": 0, "loss": 1.0}]))

    assert len(long(100_000)) < 1.1 * len(long(1_000))


def test_hundreds_of_everything() -> None:
    report = example(
        evaluation={"by_category": {f"c{i}": category(i) for i in range(500)}},
        prepare={"rejected_by_reason": {f"r{i}": 1 for i in range(300)}},
        lengths=[(i, i, 1) for i in range(300)],
        samples=[sample(tuned="x " * 50_000), *[sample()] * 499],
    )
    html = render(report)
    text = Page(html).text
    assert "480 further categories" in text
    assert "288 other reasons 288" in text
    assert f"{500 - SAMPLES_KEPT} more samples left out." in text
    assert "90,000 more characters are not shown here." in text
    assert html.count("</title></rect>") <= 60


def test_long_answers_are_folded_and_short_ones_are_not() -> None:
    html = render(example(samples=[sample(base="short", tuned="long " * 300)]))
    assert '<div class="text" dir="auto">short</div>' in html
    assert "whole text, 1,500 characters" in html


def test_outliers_do_not_flatten_the_curve_and_are_owned_up_to() -> None:
    curve = [{"step": s, "loss": 1e6 if s == 50 else 1.0 + s / 1e3} for s in range(200)]
    html = render(example(train_curve=curve))
    assert re.search(r"Values above \d\.\d+ are drawn at the upper edge", html)


def test_drawings_have_names_and_bars_keep_silent() -> None:
    for tag, attrs in Page(render(example())).tags:
        if tag == "svg":
            named = attrs.get("role") == "img" and attrs.get("aria-label")
            assert named or attrs.get("aria-hidden") == "true"


def test_thinning_keeps_every_extreme() -> None:
    points = np.zeros((10_000, 2))
    points[:, 0] = np.arange(10_000)
    points[777, 1], points[4321, 1] = 5.0, -5.0
    thinned = list(map(tuple, thin(points, 100)))
    assert len(thinned) <= 100
    assert {(777.0, 5.0), (4321.0, -5.0)} <= set(thinned)
    assert thinned == sorted(thinned)


def test_smoothing_removes_noise_but_not_the_level() -> None:
    line = smooth(np.array([(float(i), 3.0 + (-1) ** i) for i in range(1000)]))
    assert len(line) <= 300
    assert (line[0][0], line[-1][0]) == (0.0, 999.0)
    assert all(abs(y - 3) < 0.1 for _, y in line)


def test_points_are_put_in_order_and_cleared() -> None:
    rows: list[dict[str, Any]] = [
        {"step": 2, "loss": 1},
        {"step": 1, "loss": 2},
        {"step": 3, "loss": math.nan},
        {"loss": 1},
        {"step": 4, "loss": True},
    ]
    assert finite_points(rows, "step", "loss").tolist() == [[1.0, 2.0], [2.0, 1.0]]


@given(
    st.lists(st.tuples(st.floats(0, 1e9), st.floats(-1e60, 1e60)), min_size=1, max_size=20),
    st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_any_line_is_drawn_inside_its_axes(pairs: list[tuple[float, float]], log: bool) -> None:
    points = np.array(sorted((x, abs(y) + 1e-9 if log else y) for x, y in pairs))
    series = [Series(label="a", points=points, style="plain", marker="o")]
    svg = line_chart(title="t", series=series, x_label="x", log=log).svg
    assert svg is not None
    [(x0, y0, x1, y1)] = [(50, 22, 680 - 14, 395 - 46)]
    [path] = re.findall(r'<g class="line plain"><path d="(.*?)"', svg)
    drawn = [tuple(map(float, one.split())) for one in re.split("[ML]", path)[1:]]
    assert all(x0 <= x <= x1 and y0 <= y <= y1 for x, y in drawn)
    assert svg.count('class="ytick"') >= 1 and not re.search(r"\b(nan|inf)\b", svg)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (1.0, "1"), (25000, "25,000"),
     (3e-4, "3e-4"), (1.4987e-3, "1.5e-3"), (2.5e-5, "2.5e-5"), (-1.5e-3, "-1.5e-3"), (2e7, "2e7")],
)  # fmt: skip
def test_tick_text(value: float, text: str) -> None:
    assert tick_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0015, "1.5e-3"), (1e-6, "1e-6"), (0.1, "0.1"), (16, "16"), (2048, "2048"), (1e6, "1000000"),
     (1e20, "1e20"), (0, "0"), (-1e-5, "-1e-5"), (0.00123456789, "1.23456789e-3")],
)  # fmt: skip
def test_a_param_is_written_one_way(value: float, text: str) -> None:
    assert brief(value) == text and float(text) == value


def test_interval_is_wilsons() -> None:
    low, high = wilson_interval(0.5, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)
    assert wilson_interval(0.0, 10)[0] == 0.0
    assert wilson_interval(1.0, 10)[1] == pytest.approx(1.0)


def test_words_for_change_follow_what_is_shown() -> None:
    assert moved(0.5001, 0.5002, percent) == "stayed at 50.0%"
    assert moved(2.0, math.nan, decimal) == "is NaN"
    assert moved(None, 0.5, percent) == "is 50.0%"


HOSTILE = st.text(alphabet=string.printable + "\x00\ud800é☃") | st.sampled_from(
    ["{{ 7 * 7 }}", "{% raw %}", "</style><script>", "$x_1$", "&lt;b&gt;", "]]>", "\r\n"]
)


def words_of(text: str) -> str:
    """A page without drawings."""
    given = {"facts": {text: text}, "worst": [hard(id=text)], "params": {text: text}}
    return render(example(train_curve=[], val_curve=[], lengths=[], **given))


@given(HOSTILE.map(lambda text: f"x{text}"))
@settings(deadline=None, max_examples=30)
def test_any_text_comes_out_of_the_template_as_it_went_in(text: str) -> None:
    page = Page(words_of(text))
    assert page.words.count(printable(text)) == 5
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in Page(words_of("plain")).tags}


@given(HOSTILE.map(lambda text: f"x{text[:18]}"))
@settings(deadline=None, max_examples=30)
def test_any_name_comes_out_of_a_drawing_as_it_went_in(text: str) -> None:
    points = np.array([[0.0, 1.0], [1.0, 2.0]])
    one = Series(label=text, points=points, style="val", marker="o")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = line_chart(title=text, series=[one], x_label="", name_ends=True).svg
    page, shown = Page(str(svg)), printable(text)
    assert page.tags[0][1]["aria-label"] == (
        f"{shown}. {shown}: 1.000 at 0, 2.000 at 1, lowest 1.000."
    )
    assert page.words.count(f"{shown} at 0: 1.000") == page.words.count(shown) == 1
    assert {tag for tag, _ in page.tags} == {"svg", "g", "path", "text", "title"}


def test_a_template_without_one_of_its_values_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'report' is undefined"):
        fill("evaluation/report/page.html.jinja")


def test_an_installed_package_has_every_template() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    [patterns] = settings["package-data"].values()
    files = [path for path in (ROOT / "simple_llama").rglob("*") if path.suffix in DATA_SUFFIXES]
    assert len(files) >= 6
    for path in files:
        assert any(path.match(pattern) for pattern in patterns)
        assert (path.parent / "__init__.py").is_file(), "the folder is a package"


@pytest.mark.slow
@pytest.mark.parametrize(
    "draw",
    [
        "line_chart(title='t', series=[Series(label='a', points=points, style='val')], "
        "x_label='x').svg",
        "swatch('strong c0', 'o')",
    ],
)
def test_the_users_settings_of_matplotlib_change_nothing(tmp_path: Path, draw: str) -> None:
    """Nor does a home that cannot be written, whatever is drawn first, and nothing is said of
    it."""
    (tmp_path / "matplotlibrc").write_text("axes.grid.axis: both\nfont.size: 30\nbackend: tkagg\n")
    code = f"from simple_llama.pages.charts import *; points = np.eye(2)\nprint({draw})"
    plain = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    drawn = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=plain | settings,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        for settings in (
            {"MATPLOTLIBRC": str(tmp_path)},
            {"HOME": "/dev/null", "MPLBACKEND": "module://absent.backend"},
            {"MPLCONFIGDIR": "/dev/null/x"},
        )
    ]
    assert drawn[0].stdout == drawn[1].stdout == drawn[2].stdout
    assert drawn[0].stdout.startswith("<svg")
    assert [one.stderr for one in drawn] == ["", "", ""]
