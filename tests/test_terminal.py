"""Text on a terminal: nothing harmful reaches it, nothing is lost, columns come out as columns."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simple_llama.inference.terminal import Columns, printable, width, wrap

WORDS = st.text(st.sampled_from("ab  \n\t漢é-"), max_size=60)


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
    assert max(map(width, lines)) <= columns
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
