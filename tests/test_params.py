"""params.yaml: what is read, and what is refused in one line."""

import re
import tempfile
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simple_llama.errors import InputError
from simple_llama.params.pipeline import PIPELINE
from simple_llama.params.reading import Params
from simple_llama.params.train import TrainParams
from simple_llama.strict_yaml import read_mapping
from tests.support.project import COMMITTED, with_value


def test_the_committed_file_is_valid_and_each_key_commented() -> None:
    Params(COMMITTED)
    for line in COMMITTED.read_text().splitlines():
        assert line == "" or line.startswith("#") or re.fullmatch(r"\w+: .+ # .+", line), line


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-05", 1e-5), ("5e-5", 5e-5), ("0.00001", 1e-5), ("3E-4", 3e-4), ("1", 1.0), (".5", 0.5)],
)
def test_floats_as_dvc_and_people_write_them(written: str, value: float, tmp_path: Path) -> None:
    params = Params(with_value(tmp_path, "max_lr", written)).section(TrainParams)
    assert params.max_lr == value
    assert type(params.max_lr) is float


@given(
    st.sampled_from(["", "-", "+", "0", "1", "'"]),
    st.sampled_from(["yes", "on", "017", "0o17", "0x1f", "1:30", "1_000", "1e3", "1.", "~", "Null"])
    | st.text(alphabet="0123456789eE.+-_:xo", min_size=1, max_size=8),
)
def test_a_value_is_what_dvc_takes_it_for(sign: str, word: str) -> None:
    """YAML 1.1 has octal 017, sexagesimal 1:30, and yes for true."""
    from dvc.utils.serialize import YAMLFileCorruptedError, parse_yaml

    text = f"a: {sign}{word}\n"
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        try:
            theirs = parse_yaml(text, "x")
        except (YAMLFileCorruptedError, ValueError):
            with pytest.raises(InputError):
                read_mapping(file.name)
        else:
            assert repr(read_mapping(file.name)) == repr(theirs)


def test_a_learning_rate_of_1e_5_alone_is_valid(tmp_path: Path) -> None:
    Params(with_value(tmp_path, "max_lr", "1e-05"))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("max_lr", "fast", "max_lr: got 'fast', wanted a finite number"),
        ("max_lr", "'1e-5'", "max_lr: got '1e-5', wanted a finite number"),
        ("max_lr", ".nan", "wanted a finite number"),
        ("max_lr", ".inf", "wanted a finite number"),
        ("max_lr", "0", "max_lr: got 0.0, wanted above 0"),
        ("max_lr", f"1{'0' * 400}", "wanted a finite number"),
        ("min_lr", "1", r"min_lr: got 1.0, wanted 0 to max_lr"),
        ("epochs", "1.5", "epochs: got 1.5, wanted an integer"),
        ("epochs", "true", "epochs: got true, wanted an integer"),
        ("epochs", "", "epochs: got null, wanted an integer"),
        ("epochs", "0", "epochs: got 0, wanted 1 or more"),
        ("dropout", "1", "dropout: got 1.0"),
        ("use_flash_attention", "1", "wanted true or false"),
        ("supervise", "every", "wanted last_reply or all_replies"),
        ("lr_schedule", "[cosine]", "wanted cosine or linear or constant"),
        ("device", "gpu", "device: got 'gpu', wanted auto, cpu"),
        ("train_split", "1.0", "train_split: got 1.0, wanted between 0 and 1"),
        ("ft_json_path", "3", "ft_json_path: got 3, wanted printable text"),
        ("seed", "-1", "seed: got -1, wanted 0 to 4294967295"),
        ("mlflow_experiment", "Default", "a name other than 'Default'"),
    ],
)
def test_bad_values(key: str, value: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        Params(with_value(tmp_path, key, value))


def test_unknown_missing_and_doubled_keys(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(COMMITTED.read_text() + "max_lrs: 1\n")
    with pytest.raises(InputError, match=r"unknown key 'max_lrs' \(did you mean 'max_lr'\?\)"):
        Params(path)
    path.write_text(re.sub(r"(?m)^seed:.*\n", "", COMMITTED.read_text()))
    with pytest.raises(InputError, match="missing key 'seed', wanted an integer"):
        Params(path)
    path.write_text(COMMITTED.read_text() + "seed: 1\n")
    with pytest.raises(InputError, match="key 'seed' stands twice"):
        Params(path)


@pytest.mark.parametrize(
    "content",
    [
        b"- a\n",
        b"a: [",
        b"\xff\xfe",
        b"? [a]\n: 1\n",
        b"a: &x [*x]\n",
        b"[" * 500,
        b"2026-99-99: 1",
    ],
)
def test_what_is_not_a_params_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError):
        Params(path)
    with pytest.raises(InputError, match="no such file"):
        Params(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "params.yaml: empty, wanted lines of 'key: value'"),
        ("# nothing\n", "params.yaml: empty, wanted"),
        ("- a\n", "params.yaml: got ['a'], wanted lines"),
        ("a: 1\nb: " + "9" * 5000, "line 2: an integer of 5,000 digits, wanted at most 1,000,000,"),
        ("a: -" + "9" * 4301, "line 1: an integer of 4,301 digits, wanted at most"),
    ],
)
def test_what_it_is_instead_is_said(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=re.escape(said)):
        read_mapping(path)


@given(st.binary(max_size=200))
def test_any_bytes_end_in_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("params") / "params.yaml"
    path.write_bytes(data)
    with pytest.raises(InputError):
        Params(path)


def test_every_key_has_one_type() -> None:
    types: dict[str, object] = {}
    for owner in PIPELINE:
        for field in fields(owner):
            assert types.setdefault(field.name, field.type) == field.type
