"""mixture.yaml: how many copies of an example stand in the split, and what is refused."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simple_llama.data.mixture import Mixture
from simple_llama.data.preparation import prepare
from simple_llama.data.rows import read_rows
from simple_llama.errors import InputError
from tests.support.conversations import params, read, row

A, B = ([row(f"{name} question {index}") for index in range(200)] for name in "AB")


def folder(path: Path, mixture: str, **files: list[Any]) -> Path:
    raw = path / "raw"
    raw.mkdir(exist_ok=True)
    for name, rows in files.items():
        (raw / f"{name}.json").write_text(json.dumps(rows))
    (raw / "mixture.yaml").write_text(mixture)
    return raw


def mixed(path: Path, mixture: str, **files: list[Any]) -> tuple[dict[str, Any], Counter[str]]:
    """The report, and how often each first prompt stands in train; of val it holds the once."""
    raw = folder(path, mixture, **files)
    report = prepare(params(raw), path / "out")
    train, val = (
        Counter(one["messages"][1]["content"] for one in read(path / f"out/{side}.jsonl"))
        for side in ("train", "val")
    )
    assert max(val.values()) == 1 and not train.keys() & val.keys()
    assert report["kept"] + report["rejected"] + report["duplicates"] == report["examples"]
    assert report["examples"] + report["left_out"] == len(list(read_rows(raw)))
    assert (len(train), len(val)) == (report["train"], report["val"])
    assert train.total() == report["train"] + report["repeated"]
    return report, train + val


def of(file: str, copies: Counter[str]) -> list[int]:
    return [times for prompt, times in copies.items() if prompt.startswith(file)]


def test_whole_weights_repeat_training_examples_and_never_validation(tmp_path: Path) -> None:
    report, copies = mixed(tmp_path, "a.json: 3", a=A, b=B)
    assert set(of("A", copies)) == {1, 3} and set(of("B", copies)) == {1}
    assert of("A", copies).count(1) + of("B", copies).count(1) > report["val"]
    assert report["kept"] == 400 and report["left_out"] == 0 and report["repeated"] > 200
    plain, _ = mixed(tmp_path, "a.json: 1", a=A, b=B)
    assert [plain[side] for side in ("train", "val")] == [report["train"], report["val"]]


def test_a_fraction_takes_a_part_and_a_larger_one_only_adds(tmp_path: Path) -> None:
    taken = []
    for weight in (0, 0.25, 0.5, 1, 1.5, 2):
        report, copies = mixed(tmp_path, f"a.json: {weight}", a=A, b=B)
        taken.append(copies)
        assert len(of("B", copies)) == 200
        assert abs(len(of("A", copies)) - 200 * min(weight, 1)) <= 25
        assert report["left_out"] == 200 - len(of("A", copies))
    assert all(fewer <= more for fewer, more in pairwise(taken))
    some = [prompt for prompt in taken[2] if prompt.startswith("A")]
    # the half that 0.5 takes is the half that 1.5 takes once more, where it trains
    assert {p for p, n in taken[4].items() if n == 2} <= set(some)


def test_more_rows_never_change_what_becomes_of_the_others(tmp_path: Path) -> None:
    _, few = mixed(tmp_path, "{a.json: 0.5, b.json: 1.5}", a=A[:100], b=B[:100])
    _, many = mixed(tmp_path, "{a.json: 0.5, b.json: 1.5}", a=A[::-1], b=B, c=[row("another")])
    prompts = {one["User"][0] for one in A[:100] + B[:100]}
    assert few == Counter({prompt: n for prompt, n in many.items() if prompt in prompts})


def test_what_one_file_leaves_out_another_may_hold(tmp_path: Path) -> None:
    report, copies = mixed(tmp_path, "a.json: 0", a=A, b=[*A, *B])
    assert len(copies) == 400 and report["left_out"] == 200 and report["duplicates"] == 0


@pytest.mark.parametrize(
    ("mixture", "said"),
    [
        ("a.jsn: 1", r"'a.jsn' is no file of conversations here \(did you mean 'a.json'\?\)"),
        ("../out/train.jsonl: 1", "'../out/train.jsonl' is no file of conversations here"),
        ("/etc/passwd: 1", "'/etc/passwd' is no file"),
        ("mixture.yaml: 1", "is no file"),
        ("1: 1", "1 is no file"),
        ("a.json: -0.5", "a.json: got -0.5, wanted 0 to 100"),
        ("a.json: 1e9", "wanted 0 to 100"),
        ("a.json: .inf", "a.json: got inf, wanted a finite number"),
        ("a.json: .nan", "wanted a finite number"),
        ("a.json: '2'", "a.json: got '2', wanted a finite number"),
        ("a.json: true", "wanted a finite number"),
        ("a.json: [1]", "wanted a finite number"),
        ("a.json: 1\na.json: 2", "key 'a.json' stands twice"),
        ("[a.json]", r"got \['a.json'\], wanted lines of 'key: value'"),
        ("", "empty, wanted"),
        ("a.json: &x 1\nb.json: *x", "an alias"),
        ("{a.json: 0, b.json: 0}", "no example left, 400 left out by mixture.yaml"),
    ],
)
def test_a_mixture_that_is_refused(tmp_path: Path, mixture: str, said: str) -> None:
    raw = folder(tmp_path, mixture, a=A, b=B)
    with pytest.raises(InputError, match=said) as error:
        prepare(params(raw), tmp_path / "out")
    assert "\n" not in str(error.value) and "raw" in str(error.value)
    assert not (tmp_path / "out/train.jsonl").exists()


def test_a_name_is_the_same_composed_or_decomposed(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for written, found in ((composed, decomposed), (decomposed, composed)):
        raw = folder(tmp_path, f"{written}.json: 2", **{found: A[:1]})
        assert Mixture.of(raw, 0).weights == {f"{found}.json": 2.0}
        (raw / f"{found}.json").unlink()
    raw = folder(tmp_path, f"{composed}.json: 2", **{composed: A[:1], decomposed: B[:1]})
    assert Mixture.of(raw, 0).weights == {f"{composed}.json": 2.0}


def test_a_mixture_is_a_file_of_its_folder(tmp_path: Path) -> None:
    raw = folder(tmp_path, "a.json: 2", a=A)
    (raw / "mixture.yaml").rename(tmp_path / "outside.yaml")
    (raw / "mixture.yaml").symlink_to(tmp_path / "outside.yaml")
    with pytest.raises(InputError, match="a link that leads out of"):
        Mixture.of(raw, 0)
    (tmp_path / "outside.yaml").unlink()
    with pytest.raises(InputError, match=r"mixture.yaml: not a file"):
        Mixture.of(raw, 0)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 100), st.integers(0, 5), st.binary(min_size=16, max_size=16))
def test_copies_are_the_weight_rounded_up_or_down(weight: float, seed: int, digest: bytes) -> None:
    mixture = Mixture({"a": weight}, seed)
    copies = mixture.copies("a", digest)
    assert copies in (int(weight), int(weight) + 1) and copies == mixture.copies("a", digest)
    assert mixture.copies("b", digest) == 1
