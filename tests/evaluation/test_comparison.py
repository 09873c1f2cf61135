"""Runs side by side: names found as git and DVC mean them, an honest page, errors of one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from simple_llama.cli import main
from simple_llama.errors import InputError
from simple_llama.evaluation.comparison.chart import COLOURS
from simple_llama.evaluation.comparison.markdown import as_markdown
from simple_llama.evaluation.comparison.page import as_text, render
from simple_llama.evaluation.comparison.runs import WORKSPACE, differing_params, find_runs
from simple_llama.evaluation.comparison.scores import comparable
from tests.support.page import Page
from tests.support.project import ROOT

EVIL = "<script>alert(1)</script>\"'&<!--"
SPLIT = "data/prepared/val.jsonl"
EVAL = "reports/eval.json"
Files = dict[str, str | None]


def params(**changes: str) -> str:
    values = {"max_lr": "1.5e-3", "epochs": "3", "eval_json_path": SPLIT} | changes
    return "".join(f"{key}: {value}\n" for key, value in values.items())


def scores(loss: float = 0.5, **changes: Any) -> str:
    plain = {
        "val_loss": loss,
        "val_perplexity": 1.6,
        "val_token_accuracy": 0.9,
        "exact_match": 0.25,
        "exact_match_examples": 8,
        "base_val_loss": 7.0,
        "examples": 10,
        "supervised_tokens": 123,
        "data": "The validation split.",
        "by_category": {
            "sums": {"examples": 6, "val_loss": loss, "exact_match": 0.5},
            "words": {"examples": 4, "val_loss": 0.6, "exact_match": None},
        },
    }
    return json.dumps(plain | changes)


def lock(md5: str = "aa", **used: str) -> str:
    evaluate = {"deps": [{"path": SPLIT, "md5": md5}]}
    return json.dumps(
        {"stages": {"train": {"params": {"params.yaml": used}}, "evaluate": evaluate}}
    )


def files(loss: float = 0.5, changes: Files | None = None, **settings: str) -> Files:
    """A finished run."""
    return {
        "params.yaml": params(**settings),
        "dvc.lock": lock(),
        "reports/prepare.json": json.dumps({"examples": 100, "kept": 90, "train": 80, "val": 10}),
        "reports/tokenize.json": json.dumps({"train_examples": 80}),
        "reports/train.json": json.dumps(
            {"steps": 30, "epochs": 2.5, "examples": 80, "best_step": 20}
        ),
        EVAL: scores(loss),
        "reports/curves/train.csv": "step,loss\n1,7\n2,5.5\n30,0.4\n",
        "reports/curves/val.csv": f"step,loss\n10,{loss + 1}\n30,{loss}\n",
        "reports/curves/interval.csv": "step,loss\n0,7\n10,2\n",
    } | (changes or {})


class Repo:
    """A git repository of runs, its experiments made as DVC makes them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = 1_700_000_000
        self.git("init", "-qb", "main")
        self.commit(files())

    def git(self, *arguments: str) -> str:
        self.clock += 60
        date = f"{self.clock} +0000"
        settings = {"AUTHOR_DATE": date, "COMMITTER_DATE": date, "CONFIG_GLOBAL": os.devnull}
        for who in ("AUTHOR", "COMMITTER"):
            settings |= {f"{who}_NAME": "a", f"{who}_EMAIL": "a@b.c"}
        return subprocess.run(
            ["git", *arguments],
            cwd=self.root,
            env=os.environ | {f"GIT_{key}": value for key, value in settings.items()},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    def write(self, contents: Files) -> None:
        for name, content in contents.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_text(content)

    def commit(self, contents: Files) -> str:
        self.write(contents)
        self.git("add", "-A")
        self.git("commit", "-qm", "run", "--allow-empty")
        return self.git("rev-parse", "HEAD")

    def experiment(self, name: str, contents: Files, base: str = "") -> str:
        """An experiment from `base` (HEAD); the working tree becomes that of HEAD."""
        base = base or self.git("rev-parse", "HEAD")
        self.write(contents)
        self.git("add", "-A")
        commit = self.git("commit-tree", self.git("write-tree"), "-p", base, "-m", "dvc: commit")
        self.git("update-ref", f"refs/exps/{base[:2]}/{base[2:]}/{name}", commit)
        self.git("reset", "-q", "--hard")
        return commit


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repo:
    monkeypatch.chdir(tmp_path)
    return Repo(tmp_path)


def shown(*names: str) -> Page:
    return Page(render(*find_runs(names)))


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["simple-llama", "report", *arguments])
    main()


def starred(html: str) -> dict[str, list[int]]:
    """The columns that are marked as best, by the label of their row."""
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', html)
    found: dict[str, list[int]] = {}
    for label, cells in rows:
        marked = [i for i, cell in enumerate(re.findall(r"<td.*?</td>", cells)) if "★" in cell]
        if marked:
            found[label] = marked
    return found


def test_a_name_may_be_an_experiment_a_branch_a_tag_or_a_commit(repo: Repo) -> None:
    head = repo.git("rev-parse", "HEAD")
    made = repo.experiment("fast", files(0.4, max_lr="0.01"))
    repo.git("tag", "v1")
    runs, notes = find_runs(["fast", "main", "v1", head[:9], "HEAD", WORKSPACE, "fast"])
    assert [run.origin for run in runs] == [
        f"experiment {made[:7]}",
        f"branch {head[:7]}",
        f"tag {head[:7]}",
        f"commit {head[:7]}",
        f"commit {head[:7]}",
        f"same as {head[:7]}",
    ]
    assert notes == []
    assert runs[0].params["max_lr"] == "0.01"
    assert runs[0].scores["val_loss"] == 0.4
    assert runs[0].curves["val"] == [
        {"step": 10.0, "loss": 1.4},
        {"step": 30.0, "loss": 0.4},
    ]
    assert runs[1:-1] and all(run.scores == runs[-1].scores for run in runs[1:-1])


def test_without_names_the_workspace_and_the_experiments_of_head(repo: Repo) -> None:
    repo.experiment("older", files())
    repo.commit(files())
    repo.experiment("b", files())
    repo.experiment("a", files())
    repo.git("update-ref", "refs/exps/exec/EXEC_HEAD", "HEAD")
    repo.git("update-ref", "refs/exps/stash", "HEAD")
    repo.write({EVAL: scores(0.3)})
    runs, _ = find_runs([])
    assert [run.name for run in runs] == [WORKSPACE, "b", "a"]
    assert runs[0].origin.startswith("changed since ")
    assert runs[0].scores["val_loss"] == 0.3


def test_of_several_experiments_with_one_name_that_of_head_is_taken(repo: Repo) -> None:
    start = repo.git("rev-parse", "HEAD")
    mine = repo.experiment("x", files(0.1))
    repo.git("checkout", "-q", "--orphan", "other")
    other = repo.commit(files())
    newest = repo.experiment("x", files(0.2))
    repo.git("checkout", "-q", "main")
    runs, notes = find_runs(["x"])
    assert runs[0].origin == f"experiment {mine[:7]}"
    assert notes == ["x: 2 experiments have this name, this is that of HEAD"]
    assert start != other
    repo.commit({"new": ""})
    runs, notes = find_runs(["x"])
    assert runs[0].origin == f"experiment {newest[:7]}"
    assert notes == ["x: 2 experiments have this name, this is the newest"]
    repo.git("branch", "y", "main~1")
    repo.experiment("y", files())
    assert find_runs(["y"])[1] == [
        "y: an experiment and a git revision have this name, this is the experiment"
    ]
    assert "this is the newest." in shown("x").text


def test_a_project_in_a_folder_of_its_repository(
    repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.commit({f"deep/{name}": text for name, text in files(0.125).items()})
    monkeypatch.chdir(repo.root / "deep")
    runs, _ = find_runs(["main", WORKSPACE])
    assert [run.scores["val_loss"] for run in runs] == [0.125, 0.125]
    assert runs[1].origin.startswith("same as ")


def test_only_params_that_differ_are_listed(repo: Repo) -> None:
    repo.experiment("same", files(max_lr="0.0015"))  # as DVC writes 1.5e-3
    repo.experiment("low", files(max_lr="1e-05", epochs="5", extra="new"))
    assert differing_params(find_runs(["main", "same"])[0]) == []
    runs, _ = find_runs(["main", "low"])
    assert differing_params(runs) == ["max_lr", "epochs", "extra"]
    text = shown("main", "low").text
    assert "max_lr 1.5e-3 1e-5 epochs 3 5 extra – new" in text
    assert "eval_json_path" not in text
    assert "No parameter differs" in shown("main", "same").text


def test_the_best_of_each_row_is_marked_by_a_sign(repo: Repo) -> None:
    low = {"exact_match": 0.1, "val_token_accuracy": 0.95, "val_perplexity": 1.1}
    repo.experiment("a", files(changes={EVAL: scores(0.2, **low)}))
    repo.experiment("b", files(changes={EVAL: scores(0.20001, **low)}))
    html = render(*find_runs(["main", "a", "b"]))
    marks = starred(html)
    assert marks["Validation loss"] == [1, 2]  # equal as shown
    assert marks["Perplexity"] == [1, 2]
    assert marks["Token accuracy"] == [1, 2]
    assert marks["Exact match"] == [0]
    assert marks["sums"] == [2, 3]
    assert not {"words", "Steps", "Best step", "Loss of the base model"} & set(marks)
    assert "lowest loss 0.2000 (a, b), best exact match 25.0% (main)" in Page(html).text
    assert 'aria-label="best">★<' in html


@pytest.mark.parametrize(
    ("changes", "basis", "said", "listed"),
    [
        ({}, {"tokens", "replies"}, "Yes: evaluated on the same data, by its hash.", ""),
        ({"dvc.lock": None}, {"tokens", "replies"}, "as far as their counts tell", ""),
        ({"dvc.lock": lock("bb")}, set(), "No: they were", "Evaluated file, MD5 aa bb"),
        ({EVAL: scores(0.1, data="Held out")}, set(), "No: they were", "validation split. Held"),
        ({EVAL: scores(0.1, examples=9)}, set(), "No: they were", "Evaluated examples 10 9"),
        ({EVAL: scores(0.1, supervised_tokens=9)}, {"replies"}, "losses no", "tokens 123 9"),
        ({EVAL: scores(0.1, exact_match_examples=7)}, {"tokens"}, "match no", "match 8 7"),
        (
            {"reports/prepare.json": '{"train": 50}'},
            {"tokens", "replies"},
            "by its hash. The validation split. The runs were trained on different data.",
            "For training 80 50",
        ),
    ],
)
def test_what_was_evaluated_on_other_data_is_not_ranked(
    repo: Repo, changes: Files, basis: set[str], said: str, listed: str
) -> None:
    other = {EVAL: scores(0.1, exact_match=0.75)} | changes
    repo.experiment("other", files(changes=other))
    runs, _ = find_runs(["main", "other"])
    assert comparable(runs) == basis
    html = render(runs)
    assert said in Page(html).text
    assert listed in Page(html).text
    assert ("Validation loss" in starred(html)) == ("tokens" in basis)
    if "replies" not in basis:
        assert "Exact match" not in starred(html)


def test_a_run_that_is_not_finished_is_shown_as_such(repo: Repo) -> None:
    gone: Files = {EVAL: None, "reports/train.json": None, "dvc.lock": None}
    repo.experiment("half", files(changes=gone | {"reports/curves/val.csv": None}))
    page = shown("half", "main")
    assert "half not finished" in page.text
    assert "Validation loss – 0.5000" in page.text
    assert "fewer than two of these runs have scores of their own params" in page.text
    assert re.search(r"half .* not finished", as_text(find_runs(["half", "main"])[0]))
    none: Files = dict.fromkeys(files())
    repo.commit(none | {"params.yaml": params()})
    assert "Nothing to draw." in shown("main").text


def test_results_that_params_have_outrun_or_that_are_the_same_are_told(repo: Repo) -> None:
    repo.commit({"dvc.lock": lock(max_lr="0.0015", epochs="3")})
    assert "its scores are of" not in shown(WORKSPACE).text
    repo.write({"params.yaml": params(epochs="4")})
    text = shown(WORKSPACE, "main").text
    assert "workspace: its scores are of epochs 3; params.yaml now says 4, and dvc repro" in text
    assert "workspace: exactly the same scores as main." in text


def test_scores_of_other_params_are_called_so_wherever_they_stand(repo: Repo) -> None:
    """And are never the best."""
    repo.commit({"dvc.lock": lock(max_lr="0.0015")})
    repo.experiment("mine", files(0.6, {"dvc.lock": lock(max_lr="0.002")}, max_lr="2e-3"))
    repo.experiment("new", files(0.1, {"dvc.lock": lock(max_lr="0.0015")}, max_lr="3e-3"))
    runs, _ = find_runs(["main", "mine", "new"])
    said = "new: its scores are of max_lr 1.5e-3; params.yaml now says 3e-3, and dvc repro makes"
    html = render(runs)
    text = Page(html).text
    assert said in text and "Of other params, as the scores are: new." in text
    assert html.count('<span class="badge no">scores of other params</span>') == 3
    assert starred(html)["Validation loss"] == [0] and "lowest loss 0.5000 (main)" in text
    assert re.search(
        r"(?m)^new   max_lr=3e-3 +0.1000 +25.0%  scores of other params$", as_text(runs)
    )
    marked = as_markdown(runs)
    assert "| new (scores of other params) |" in marked
    assert "| Loss | 0.5000 | 0.6000 (worse by 0.1000) | 0.1000 |" in marked
    assert (
        "fewer than two of these runs have scores of their own params" in shown("main", "new").text
    )


def test_names_and_values_cannot_break_out_of_the_page(repo: Repo) -> None:
    name = EVIL
    evil: Files = {
        "params.yaml": params(system_prompt=json.dumps(EVIL + "\x1b[31m")),
        EVAL: scores(0.4, data=EVIL, by_category={EVIL: {"examples": 1, "val_loss": 1}}),
    }
    repo.experiment(name, files(changes=evil))
    runs, _ = find_runs([name, "main"])
    html = render(runs)
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "img", "link", "a"}
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]
    assert "<!--" not in html
    assert page.text.count("<script>alert(1)</script>") >= 8
    assert "\x1b" not in html + as_text(runs)


def test_a_page_by_itself_the_same_every_time(repo: Repo) -> None:
    repo.experiment("fast", files(0.4, max_lr="0.01"))
    html = render(*find_runs([]))
    assert html == render(*find_runs([]))
    assert "http" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert html.count("<style>") == 1
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "img", "object", "a"}
    for tag, attrs in page.tags:
        assert not {"src", "href", "srcset", "style"} & set(attrs)
        if tag == "svg":
            assert attrs.get("role") == "img" or attrs.get("aria-hidden") == "true"
    titles = re.findall(r"<h2>(.*?)</h2>", html)
    assert titles == ["Can they be compared?", "Side by side", "Loss curves", "By category"]


def test_many_runs_with_many_steps_stay_readable(repo: Repo) -> None:
    steps = "".join(f"{step},{1 + 1 / step}\n" for step in range(1, 1500))
    long: Files = {"reports/curves/train.csv": "step,loss\n" + steps}
    for i in range(24):
        repo.experiment(f"a-rather-long-name-of-a-run-{i}", files(0.5 + i / 100, long))
    html = render(*find_runs([]))
    heights = [float(y) for y in re.findall(r'<g class="name"><text x="[\d.]+" y="([\d.]+)"', html)]
    one_chart = sorted(heights[: len(heights) // 2])
    assert len(one_chart) >= 15
    assert min(b - a for a, b in pairwise(one_chart)) >= 16
    assert all(0 < y < 400 for y in one_chart)
    assert len(html) < 1_500_000


@pytest.mark.parametrize("bad", ["NaN", "Infinity", "null", '"text"', "0", "-1", "1e400", "[1]"])
def test_any_number_may_be_bad(repo: Repo, bad: str) -> None:
    spoil = re.compile(r"(?<=: )-?\d[\d.]*")
    spoiled: Files = {
        name: spoil.sub(bad, text) if text and name.startswith("reports/") else text
        for name, text in files().items()
    }
    curve = bad if bad in {"NaN", "Infinity", "0", "-1", "1e400"} else "0"
    spoiled["reports/curves/val.csv"] = f"step,loss\n1,{curve}\n{curve},1\n"
    repo.experiment("bad", spoiled)
    for names in (["bad"], ["bad", "main"]):
        drawn = [value for _, attrs in shown(*names).tags for value in attrs.values() if value]
        assert not [v for v in drawn if re.search(r"\b(nan|inf)\b", v)]


def test_a_name_that_stands_for_nothing_is_one_line(
    repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.experiment("fast", files())
    with pytest.raises(SystemExit) as caught:
        command(monkeypatch, "fats")
    assert caught.value.code == (
        "error: 'fats': no such experiment, branch, tag or commit; "
        "experiments: fast; branches: main; tags: none"
    )
    for name in ("", "--all", "main..HEAD", "nul\0"):
        with pytest.raises(InputError, match="no such experiment"):
            find_runs([name])
    assert not Path("comparison.html").exists()


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (EVAL, "{", "Expecting property name"),
        (EVAL, "[]", "got list"),
        ("reports/train.json", "", "Expecting value"),
        ("reports/curves/train.csv", "step,loss\n1,x\n", "could not convert"),
        ("reports/curves/val.csv", "step,loss\n1\n", "not 'NoneType'"),
        ("params.yaml", "a: [", "expected the node content"),
        ("params.yaml", "just text", "got str"),
        ("dvc.lock", "\x07", "special characters"),
        ("params.yaml", None, "has no params.yaml"),
    ],
)
def test_a_broken_file_is_one_line_with_the_name_and_the_file(
    repo: Repo, monkeypatch: pytest.MonkeyPatch, file: str, content: str | None, said: str
) -> None:
    repo.experiment("broken", files(changes={file: content}))
    with pytest.raises(SystemExit) as caught:
        command(monkeypatch, "main", "broken")
    message = str(caught.value.code)
    assert message.startswith("error: broken")
    assert file in message
    assert said in message
    assert "\n" not in message


def test_the_command_writes_the_page_and_prints_a_table(
    repo: Repo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repo.experiment("fast", files(0.4, max_lr="0.01"))
    command(monkeypatch, "main", "fast")
    assert capsys.readouterr().out.splitlines() == [
        "run   params that differ  val_loss  exact_match",
        "main  max_lr=1.5e-3         0.5000        25.0%",
        "fast  max_lr=0.01           0.4000        25.0%",
        "page: comparison.html",
    ]
    assert Path("comparison.html").read_text().startswith("<!DOCTYPE html>")
    command(monkeypatch, "--out", "pages/x.html")
    assert Path("pages/x.html").read_text().count("<b>fast</b>") == 3


def test_a_pull_request_gets_the_difference_as_text(
    repo: Repo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repo.write(files(0.4, max_lr="0.01", changes={EVAL: scores(0.4, exact_match=0.125)}))
    command(monkeypatch, "main", "workspace", "--markdown")
    said = capsys.readouterr().out
    assert said.splitlines()[:9] == [
        "|  | main | workspace |",
        "|---|---:|---:|",
        r"| max\_lr | 1.5e-3 | 0.01 |",
        "| Loss | 0.5000 | 0.4000 (better by 0.1000) |",
        "| Loss of the base model | 7.0000 | 7.0000 |",
        "| Perplexity | 1.600 | 1.600 |",
        "| Token accuracy | 90.0% | 90.0% |",
        "| Exact match | 25.0% | 12.5% (worse by 12.5%) |",
        "| Steps | 30 | 30 |",
    ]
    assert "\nYes: evaluated on the same data" in said
    assert not Path("comparison.html").exists()


def test_a_pull_request_is_told_what_was_not_run_again(repo: Repo) -> None:
    stale = files(max_lr="0.01") | {"dvc.lock": lock(max_lr="0.0015")}
    repo.write(stale)
    said = as_markdown(*find_runs(["main", "workspace"]))
    assert r"workspace: its scores are of max\_lr 1.5e-3; params.yaml now says 0.01, and" in said
    assert "Not yet: fewer than two" in said and "better" not in said
    repo.write(files(changes={EVAL: scores(0.4, data="Held out: other.json")}))
    said = as_markdown(*find_runs(["main", "workspace"]))
    assert "No: they were evaluated on different data" in said and "better" not in said


def test_names_and_values_are_no_markup_in_the_table(repo: Repo) -> None:
    evil = "<b>a|b</b>@you `x` [y](z)"
    repo.experiment("e", files(changes={"params.yaml": params(max_lr=json.dumps(evil))}))
    row = as_markdown(*find_runs(["main", "e"])).splitlines()[2]
    assert r"\<b\>a\|b\</b\>\@you \`x\` \[y\](z)" in row
    assert len(re.findall(r"(?<!\\)\|", row)) == 4, "as many cells as there are runs, and one"


def test_outside_of_git_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(InputError, match="not in a git repository that"):
        find_runs([])


def test_colours_stand_out_from_the_card() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    style = (ROOT / "simple_llama/pages/style.css").read_text()
    pairs = re.findall(r"--c\d: light-dark\((#\w{6}), (#\w{6})\)", style)
    assert len(pairs) == COLOURS
    for index, card in enumerate(("#ffffff", "#1b1f23")):
        for pair in pairs:
            high, low = sorted((luminance(pair[index]), luminance(card)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 3
