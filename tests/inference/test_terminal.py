"""Text on a terminal: nothing harmful reaches it, nothing is lost, columns come out as columns."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wcwidth import wcswidth

from simple_llama.inference.terminal import Columns, printable, wrap
from tests.support.project import ROOT, Project

PARTS = [*"ab  \n\t漢é-", "e\u0301", "👩\u200d🚀", "🇫🇷"]
WORDS = st.lists(st.sampled_from(PARTS), max_size=60).map("".join)


@given(st.text())
def test_no_control_character_stays(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text)
    assert not [c for c in shown if c not in "\n\t" and (ord(c) < 32 or 0x7F <= ord(c) < 0xA0)]
    assert printable(shown) == shown


def test_ordinary_text_stays_as_it_is() -> None:
    text = "Zoë: 漢字, 👩\u200d🚀, naïve\tfin\n"
    assert printable(text) == text
    assert printable("\x1b]0;title\x07\u202e\x9b") == "␛]0;title␇��"


@given(WORDS, WORDS, st.integers(2, 12))
def test_lines_fit_and_only_the_last_one_changes_when_text_goes_on(
    text: str, more: str, columns: int
) -> None:
    lines = wrap(text, columns)
    assert max(map(wcswidth, lines)) <= columns
    assert wrap(text + more, columns)[: len(lines) - 1] == lines[:-1]
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_words_are_kept_whole_where_they_can_be() -> None:
    assert wrap("the cat sat downwards", 8) == ["the cat", "sat", "downward", "s"]
    assert wrap("漢字漢字", 5) == ["漢字", "漢字"]


def screen(written: str) -> list[str]:
    """What a terminal shows of it: a carriage return writes over the row."""
    return [row.split("\r")[-1].rstrip() for row in written.split("\n")]


@pytest.mark.parametrize("order", ["abababab", "aaaabbbb", "bbbbaaaa"])
def test_columns_show_both_texts_whatever_the_order(order: str) -> None:
    out = io.StringIO()
    table = Columns(out, ["left", "right"], columns=24)
    pieces = {"a": ["one two ", "three four", " five", "\nsix"], "b": ["1 ", "2", " 3", ""]}
    for side in order:
        table.add("ab".index(side), pieces[side].pop(0))
    table.end(0)
    table.end(1)
    assert screen(out.getvalue()) == [
        "left       │ right",
        "────────── │ ──────────",
        "one two    │ 1 2 3",
        "three four │",
        "five       │",
        "six        │",
        "",
    ]


NARROW = [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C"}]
CHINESE = "\u4e2d\u6587"


@pytest.mark.parametrize("encoding", NARROW)
def test_a_character_that_the_terminal_lacks_is_printed_as_its_escape(
    encoding: dict[str, str],
) -> None:
    code = (
        "import sys; from simple_llama.errors import one_line_errors, InputError\n"
        "with one_line_errors():\n"
        f"    print({CHINESE!r}); raise InputError({CHINESE!r})"
    )
    environment = {**os.environ, **encoding}
    run = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=ROOT, env=environment, capture_output=True
    )
    out, err = run.stdout.decode(), run.stderr.decode()
    # Python itself takes UTF-8 for the C locale
    said = CHINESE if "LC_ALL" in encoding else "\\u4e2d\\u6587"
    assert (run.returncode, out, err) == (1, f"{said}\n", f"error: {said}\n")


@pytest.mark.slow
def test_every_command_goes_on_where_the_terminal_lacks_the_characters(tmp_path: Path) -> None:
    project = Project.make(tmp_path)
    row = {"User": f"{CHINESE} \U0001f600 ?", "Assistant": CHINESE}
    rows = [{**row, "User": f"{row['User']} {number}"} for number in range(24)]
    data = project.root / f"{CHINESE}.json"
    data.write_text(json.dumps(rows), encoding="utf-8")
    project.set(ft_json_path=data.name, max_steps=2, sample_prompts=2, eval_interval=1)

    ascii_only = NARROW[0]
    for stage in ("prepare", "tokenize", "train"):
        project.run("python", "-m", f"stages.{stage}", env=ascii_only)
    assert "\\u4e2d\\u6587" in project.run("simple-llama", "inspect", env=ascii_only)
    page = f"{CHINESE}.html"
    assert "\\u4e2d" in project.run("simple-llama", "report", "--out", page, env=ascii_only)
    asked = ("--prompt", row["User"]) * 2
    short = ("--max-tokens", "3", "--device", "cpu")
    said = project.run("simple-llama", "generate", *asked, *short, env=ascii_only)
    records = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert [record["prompt"] for record in records] == [row["User"]] * 2


@pytest.mark.parametrize("lines", [1, 100_000], ids=["when it ends", "in the middle"])
def test_output_that_nobody_reads_ends_silently(lines: int) -> None:
    """As of `simple-llama inspect | head`; another broken pipe is an error."""
    program = f"""
import sys
from simple_llama.errors import one_line_errors
with one_line_errors():
    for _ in range({lines}):
        print("a line")
    if len(sys.argv) > 1:
        raise BrokenPipeError(32, "Broken pipe")
"""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", program]
    try:
        done = subprocess.run(
            command, check=False, stdout=writing, stderr=subprocess.PIPE, cwd=ROOT
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
    done = subprocess.run([*command, "other"], check=False, capture_output=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, b"error: Broken pipe\n")
