"""What `simple-llama inspect` shows is what is trained, and safe to look at."""

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wcwidth import wcswidth

from simple_llama import cli
from simple_llama.data.encoding import open_tokenizer, tokenize
from simple_llama.data.examples import read_examples
from simple_llama.data.preparation import prepare
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.tokens import Tokens
from simple_llama.errors import InputError
from simple_llama.files import write_json
from simple_llama.inspection.cells import Speller, visible
from simple_llama.inspection.inspect import inspect
from simple_llama.inspection.losses import token_losses
from simple_llama.inspection.selection import example_of_id, first_examples
from simple_llama.inspection.terminal import render
from simple_llama.model.folder import load_model, save_model
from simple_llama.pages.writing import write_page
from simple_llama.params.reading import Params
from simple_llama.params.tokenize import TokenizeParams
from simple_llama.training.loss import score
from tests.support.conversations import params, row, rows
from tests.support.models import random_model
from tests.support.project import COMMITTED

EVIL = "\x1b[31mred\x07 \u202egnp <script>alert(1)</script> é🙂\r\n<EOA>"
BAD = {"User": [""], "Assistant": [EVIL]}
LONG = row("long", "many words " * 200)
RAW = [row(EVIL, EVIL, Category=f"{EVIL}!"), *rows(40), BAD, LONG]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """Where prepare and tokenize have run, with a rejected and a dropped example."""
    root = tmp_path_factory.mktemp("inspected")
    (root / "raw.json").write_text(json.dumps(RAW))
    prepared = prepare(params(root / "raw.json"), root / "data/prepared")
    write_json(root / "reports/prepare.json", prepared)
    values = Params(COMMITTED).values
    keys = TokenizeParams.__dataclass_fields__
    chosen = {key: values[key] for key in keys} | {"tokenizer_path": str(tiny_tokenizer)}
    settings = TokenizeParams(**chosen)
    tokenized = tokenize(
        settings, open_tokenizer(settings), root / "data/prepared", root / "data/tokens"
    )
    write_json(root / "reports/tokenize.json", tokenized)
    return root


@pytest.fixture(autouse=True)
def inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("COLUMNS", "90")


def side_of(prefix: str) -> str:
    """The split that holds the example of this id."""
    [side] = [
        side
        for side in ("train", "val")
        if any(one.id == prefix for one in read_examples(f"data/prepared/{side}.jsonl"))
    ]
    return side


TEXTS = st.text(max_size=40) | st.sampled_from([EVIL, "e\u0301", "  a  b", "🙂" * 3, "<EOA>"])


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS)
def test_cells_are_the_tokens_and_their_texts_the_text(
    tiny_tokenizer: Path, prompt: str, reply: str
) -> None:
    chat = ChatTokenizer.from_path(tiny_tokenizer, prompt_format="auto", system_prompt="s")
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
    [(ids, mask)] = chat.encode([messages], "last_reply")
    cells = list(Speller.from_file(tiny_tokenizer).cells(ids.tolist(), mask.tolist()))
    assert [token for cell in cells for token in cell.ids] == ids.tolist()
    assert [cell.target for cell in cells for _ in cell.ids] == mask.tolist()
    sizes = [len(cell.ids) for cell in cells]
    assert [cell.position for cell in cells] == np.cumsum([0, *sizes[:-1]]).tolist()
    said = "".join(cell.text for cell in cells if cell.target and not cell.control)
    assert said.replace("∅", "") == visible(reply).replace(" ", "·").replace("∅", "")
    assert cells[-1].control and cells[-1].text == "<EOA>" and cells[-1].target


@given(st.text())
def test_what_is_visible_is_one_printable_line(text: str) -> None:
    assert visible(text).isprintable()
    assert wcswidth(visible(text)) <= 2 * len(visible(text))


def test_a_line_of_tokens_stands_above_its_ids_and_marks() -> None:
    side = side_of("raw.json[1]")
    lines = inspect(side, 1, "raw.json[1]", None).splitlines()
    tokens = Tokens.read(f"data/tokens/{side}.safetensors")
    assert lines[2].startswith(f"raw.json[1]  {side}, ")
    shown = " ".join(line for line in lines if re.fullmatch(r" +[\d ]+", line)).split()
    assert list(map(int, shown)) in [
        tokens.ids[a:b].tolist() for a, b in zip(tokens.starts, tokens.starts[1:])
    ]
    # 'question 0' asks, 'yes' and <EOA> are trained
    marked = next(i for i, line in enumerate(lines) if "^" in line and i > 2)
    under = "".join(
        text for text, mark in zip(lines[marked - 2], lines[marked].ljust(200)) if mark == "^"
    )
    assert under == "yes<EOA>"


def test_with_a_model_each_target_has_its_loss(
    tmp_path: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together they are the example's loss, as validation has it; a base without the last tokens
    is scored too."""
    (Path.cwd() / "params.yaml").write_text(
        re.sub(r"(?m)^precision:.*$", "precision: fp32", COMMITTED.read_text())
    )
    tokens, size = Tokens.read("data/tokens/val.safetensors"), _size()
    for vocab_size in (size, size - 2):
        model = random_model(vocab_size=vocab_size, max_position_embeddings=512)
        save_model(model, tmp_path / f"{vocab_size}")
    whole = load_model(tmp_path / f"{size}")
    scores = score(
        whole, tokens, np.arange(len(tokens)), max_tokens=2048, pad_id=0, precision="fp32"
    )
    losses = token_losses(str(tmp_path / f"{size}"), Path("data/tokens/tokenizer"))
    for index, shown in enumerate(first_examples("val", 99, losses).examples):
        assert shown.loss == pytest.approx(scores.loss[index] / scores.tokens[index], rel=1e-4)
    said = inspect("val", 1, None, None, str(tmp_path / f"{size - 2}"))
    assert re.search(r"\d of them scored, loss \d+\.\d{4} nats per token\n", said)
    assert "\nbelow the ids: the loss of each token that is trained, in nats\n" in said
    assert re.search(r"(?m)^ +\d+\.\d\d( +\d+\.\d\d)*$", said)
    page = tmp_path / "page.html"
    inspect("val", 1, None, str(page), str(tmp_path / f"{size}"))
    assert "trained<small>loss</small>" in page.read_text()
    assert re.search(r'style="--cost: \d+%" title="position \d+, id \d+, loss', page.read_text())


def _size() -> int:
    return ChatTokenizer.from_folder("data/tokens/tokenizer").vocab_size


def test_lines_are_no_wider_than_the_terminal() -> None:
    for line in inspect("train", 5, None, None).splitlines():
        assert wcswidth(line) <= 90 or line.startswith(("raw.json[", "        {", "tokens"))


def test_what_was_lost_is_counted_and_named() -> None:
    text = inspect("train", 1, None, None)
    assert re.search(r"examples in the data +43\n +rejected +1\n +empty text +1\n", text)
    assert "raw.json[41]  rejected: the prompt of turn 1 is empty" in text
    assert re.search(r"raw.json\[42\]  too long: \d+ tokens, over max_seq_len", text)
    assert inspect(None, 3, "raw.json[41]", None).startswith("raw.json[41]  rejected: ")
    assert inspect(None, 3, "raw.json[42]", None).startswith("raw.json[42]  too long: ")


def test_colour_only_on_a_terminal_that_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in inspect("train", 2, None, None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    coloured = inspect("train", 2, None, None)
    assert "\x1b[7;36m" in coloured and "^" not in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in inspect("train", 2, None, None)


@pytest.mark.parametrize("encoding", ["ascii", "iso8859-1"])
def test_a_terminal_without_the_marks_gets_others(encoding: str) -> None:
    inspection = first_examples(side_of("raw.json[0]"), 1)
    inspection = replace(inspection, examples=example_of_id("raw.json[0]", None).examples)
    text = render(inspection, width=90, colour=False, encoding=encoding)
    text.encode(encoding)
    assert "; ~ is a space, \\n a line break, \\t a tab, (none) nothing to read; " in text
    assert "\\U0001f642" in text and not set("·↵⇥∅") & set(text)
    starts = [[m.start() for m in re.finditer(r"\S+", line)] for line in text.splitlines()]
    above = [i for i, line in enumerate(text.splitlines()) if re.match(r" +\d+  \S", line)]
    assert above and all(starts[i][1:] == starts[i + 1] for i in above)


def test_hostile_text_never_reaches_the_terminal_raw(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [inspect(None, 3, wanted, None) for wanted in ("raw.json[0]", "raw.json[41]")]
    assert all(character.isprintable() or character == "\n" for character in "".join(texts))
    assert "<U+001B>[31mred" in texts[0]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    coloured = inspect(None, 3, "raw.json[0]", None)
    assert re.sub(r"\x1b\[[0-9;]+m", "", coloured).replace("\n", "").isprintable()


class Page(HTMLParser):
    """The tags of a page, and the text of its tokens."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.titles: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.titles += [value or "" for name, value in attrs if name == "title"]


def test_the_page_stands_alone_and_escapes_everything() -> None:
    assert inspect(None, 3, "raw.json[0]", "page.html") == "wrote page.html"
    text = Path("page.html").read_text()
    page = Page(text)
    assert "trained<small>position</small>" in text and "loss" not in Page(text).titles[0]
    assert "script" not in page.tags and "link" not in page.tags and "http" not in text
    assert all(character.isprintable() or character == "\n" for character in text)
    side = side_of("raw.json[0]")
    lengths = Tokens.read(f"data/tokens/{side}.safetensors").lengths
    assert page.titles[0].startswith("position 0, id ") and len(page.titles) <= lengths.max()
    inspect("val", 100, None, "page.html")
    text = Path("page.html").read_text()
    assert "empty text" in text and text.count("card sample") == len(
        Tokens.read("data/tokens/val.safetensors")
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", 0, None), "-n: got 0, wanted 1 or more"),
        ((None, 3, "nope"), "nope: not in train or val, nor rejected.* look like raw.json"),
        (("val", 3, "\ud800"), "not in val"),
    ],
)
def test_what_is_refused(arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        inspect(arguments[0], arguments[1], arguments[2], None)


def test_damaged_results_are_one_line(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["simple-llama", "inspect", "-n", "1"])
    cli.main()
    assert capsys.readouterr().out.startswith("tokens, ^ under what is trained")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SystemExit, match=r"train.safetensors: no such file; run `dvc repro tokenize` first"
    ):
        cli.main()
    (tmp_path / "data/prepared").mkdir(parents=True)
    (tmp_path / "data/tokens").symlink_to(project / "data/tokens")
    (tmp_path / "reports").symlink_to(project / "reports")
    with pytest.raises(SystemExit, match=r"train.jsonl: no such file"):
        cli.main()
    for name in ("train", "val"):
        text = (project / f"data/prepared/{name}.jsonl").read_text()
        (tmp_path / f"data/prepared/{name}.jsonl").write_text(text)
    (tmp_path / "data/prepared/rejected.jsonl").write_text("no record\n")
    with pytest.raises(SystemExit, match=r"rejected.jsonl: line 1: not a record"):
        cli.main()
    monkeypatch.setattr(sys, "argv", ["simple-llama", "inspect", "-n", "100"])
    (tmp_path / "data/prepared/train.jsonl").write_text(text.splitlines()[0])
    with pytest.raises(SystemExit, match=r"not the tokens of .*train.jsonl"):
        cli.main()


def test_a_page_overwrites_pages_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text("stages:\n  train:\n    outs:\n      - models/sft\n")
    Path("params.yaml").write_text("seed: 1\n")
    Path("pages").mkdir()
    for path, said in (
        ("params.yaml", "exists and is not a page"),
        ("models/sft/x.html", "written and deleted by DVC"),
        ("pages", "a folder"),
    ):
        with pytest.raises(InputError, match=said):
            write_page(path, "<!DOCTYPE html>")
    assert Path("params.yaml").read_text() == "seed: 1\n"
    for text in ("<!DOCTYPE html>1", "<!DOCTYPE html>2"):
        write_page("look.html", text)
        assert Path("look.html").read_text() == text
