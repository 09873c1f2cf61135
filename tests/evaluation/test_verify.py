"""`simple-llama verify`: each check holds on a sound pipeline and fails where that is broken."""

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simple_llama import cli
from simple_llama.data.encoding import open_tokenizer, tokenize
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.prompt_formats import PROMPT_FORMATS, Message
from simple_llama.data.tokens import Tokens
from simple_llama.evaluation import invariances
from simple_llama.evaluation.invariances import Check
from simple_llama.evaluation.verify import Setup, checks
from simple_llama.model import blocks, config_json, decoder, folder, kernels, rope
from simple_llama.model.attention import KVCache
from simple_llama.model.blocks import Cached
from simple_llama.model.config import ModelConfig
from simple_llama.model.decoder import Decoder
from simple_llama.model.folder import save_model
from simple_llama.model.packing import Packed
from simple_llama.params.reading import Params
from simple_llama.params.tokenize import TokenizeParams
from simple_llama.params.train import TrainParams
from simple_llama.training import loss
from tests.support.models import random_model

COMMITTED = Path(__file__).parents[2] / "params.yaml"
SYSTEM = "You are a helpful assistant."
ALL = [
    "micro-batching keeps the loss",
    "micro-batching keeps the gradient",
    "padding keeps the loss",
    "packing keeps the loss",
    "training prompt = inference prompt",
    "evaluation keeps the random state",
    "evaluation keeps train and eval mode",
    "cached generation = uncached",
    "batched generation = one at a time",
    "saved weights = loaded",
    "saved logits = loaded",
]


def conversations(count: int) -> list[list[Message]]:
    """Of various lengths, every third with two turns."""
    made: list[list[Message]] = []
    for i in range(count):
        texts = ["How many apples are left? " * (1 + i % 3), "7" * (1 + 5 * i % 11)]
        texts += ["And pears?", f"{i} pears."] if i % 3 == 0 else []
        roles = ("user", "assistant")
        turns: list[Message] = [
            {"role": roles[k % 2], "content": text} for k, text in enumerate(texts)
        ]
        made.append([{"role": "system", "content": SYSTEM}, *turns])
    return made


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> ChatTokenizer:
    return ChatTokenizer.from_path(tiny_tokenizer, prompt_format="auto", system_prompt=SYSTEM)


@pytest.fixture
def setup(tokenizer: ChatTokenizer) -> Setup:
    held = conversations(9)
    return Setup(
        folder=Path("models/sft"),
        model=random_model(vocab_size=tokenizer.vocab_size, max_position_embeddings=256),
        train=Tokens.from_examples(tokenizer.encode(conversations(12), "last_reply")),
        val=Tokens.from_examples(tokenizer.encode(held, "last_reply")),
        tokenizer=tokenizer,
        conversations=dict(enumerate(held)),
        params=replace(
            Params(COMMITTED).section(TrainParams),
            batch_size=8,
            micro_batch_tokens=150,
            max_seq_len=160,
        ),
    )


def failed(setup: Setup) -> set[str]:
    return {check.name for check in checks(setup) if not check.holds}


def test_every_check_holds_on_a_sound_pipeline(setup: Setup) -> None:
    results = list(checks(setup))
    assert [check.name for check in results] == ALL
    assert [str(check) for check in results if not check.holds] == []
    assert len({str(check).index("tolerance") for check in results}) == 1, "lines are aligned"
    assert results[4].unit == "of 9 prompts"
    assert not setup.model.training
    assert all(parameter.grad is None for parameter in setup.model.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": True, "num_key_value_heads": 1},
        {"max_position_embeddings": 20},
    ],
    ids=str,
)
def test_every_check_holds_for_other_models(setup: Setup, changes: dict[str, Any]) -> None:
    """The second: prompts are longer than the positions leave room for an answer."""
    values = {"vocab_size": setup.tokenizer.vocab_size, **changes}
    assert failed(replace(setup, model=random_model(**values))) == set()


def test_one_example_is_enough(setup: Setup) -> None:
    one = Tokens.from_examples(
        [(setup.val.ids[: setup.val.starts[1]], setup.val.mask[: setup.val.starts[1]])]
    )
    few = replace(setup, train=one, val=one, conversations={0: setup.conversations[0]})
    assert failed(few) == set()


@pytest.mark.parametrize(
    ("difference", "holds"), [(0.0, True), (1e-5, True), (1.1e-5, False), (float("nan"), False)]
)
def test_a_difference_above_its_tolerance_or_no_number_fails(
    difference: float, holds: bool
) -> None:
    check = Check(name="x", difference=difference, unit="", tolerance=1e-5)
    assert check.holds is holds
    assert str(check).endswith("  ok" if holds else "  FAILED")


def test_a_count_is_printed_in_full() -> None:
    check = Check(name="x", difference=300, unit="of 300 prompts", tolerance=0)
    assert " 300 of 300 prompts " in str(check)


def test_a_loss_averaged_in_each_micro_batch_shows(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    summed = loss.summed_loss
    monkeypatch.setattr(
        invariances, "summed_loss", lambda model, batch: summed(model, batch) / len(batch.targets)
    )
    assert failed(setup) >= set(ALL[:2])


def test_a_gradient_that_depends_on_the_cut_shows(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    summed = loss.summed_loss

    def with_wrong_gradient(model: Decoder, batch: Any) -> Tensor:
        found = summed(model, batch)
        scale = 1 + 0.001 * len(batch.examples)
        return found * scale - found.detach() * (scale - 1)

    monkeypatch.setattr(invariances, "summed_loss", with_wrong_gradient)
    assert failed(setup) == {ALL[1]}


def test_padding_that_is_attended_to_shows(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in setup.model.layers:
        layer.self_attn.fused = False  # type: ignore[union-attr]
    monkeypatch.setattr(blocks, "sliding_window_mask", lambda queries, *_: torch.tensor(True))
    assert ALL[2] in failed(setup)


def test_packed_examples_that_see_others_show(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = kernels.packed_attention

    def as_one(q: Tensor, k: Tensor, v: Tensor, packed: Packed, scale: float | None) -> Tensor:
        N = q.shape[2]
        return compute(q, k, v, Packed(torch.tensor([0, N]), N), scale)

    monkeypatch.setattr(kernels, "packed_attention", as_one)
    assert failed(setup) == {ALL[3]}


ANOTHER_NEWLINE = replace(
    PROMPT_FORMATS["simple_llama"],
    reply=replace(PROMPT_FORMATS["simple_llama"].reply, joiner=("\n\n",)),
)


def test_another_newline_in_the_prompt_shows(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.tokenizer, "_format", ANOTHER_NEWLINE)
    results = {check.name: check for check in checks(setup)}
    assert [name for name, check in results.items() if not check.holds] == [ALL[4]]
    assert results[ALL[4]].difference == 9


def draw_from_torch(_: Decoder) -> None:
    torch.rand(1)


def draw_from_numpy(_: Decoder) -> None:
    np.random.random()


def draw_from_python(_: Decoder) -> None:
    random.random()


def stay_in_eval_mode(model: Decoder) -> None:
    model.eval()


@pytest.mark.parametrize("part", ["score", "generate"])
@pytest.mark.parametrize(
    ("trace", "name"),
    [
        (draw_from_torch, ALL[5]),
        (draw_from_numpy, ALL[5]),
        (draw_from_python, ALL[5]),
        (stay_in_eval_mode, ALL[6]),
    ],
)
def test_a_trace_of_the_evaluation_shows(
    setup: Setup,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    trace: Callable[[Decoder], None],
    name: str,
) -> None:
    original = getattr(invariances, part)

    def leaves_a_trace(model: Decoder, *args: Any, **kwargs: Any) -> Any:
        result = original(model, *args, **kwargs)
        trace(model)
        return result

    monkeypatch.setattr(invariances, part, leaves_a_trace)
    bad = [check for check in only_evaluation(setup) if not check.holds]
    assert [(check.name, check.difference) for check in bad] == [(name, 1)]


def only_evaluation(setup: Setup) -> Iterator[Check]:
    return invariances.evaluation(setup.model, setup.val, setup.tokenizer, setup.params)


def test_an_evaluation_with_dropout_shows(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Decoder(setup.model.config, dropout=0.1)
    model.load_state_dict(setup.model.state_dict())
    with_dropout = replace(setup, model=model.eval())
    assert [check.holds for check in only_evaluation(with_dropout)] == [True, True]
    monkeypatch.setattr(Decoder, "eval", lambda self: self)
    assert not next(only_evaluation(with_dropout)).holds


def test_a_cache_that_forgets_positions_shows(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    angles = rope.rotary_angles
    monkeypatch.setattr(
        decoder,
        "rotary_angles",
        lambda positions, *rest: angles(positions - positions[:, :1], *rest),
    )
    assert failed(setup) == {ALL[7], ALL[8]}


def test_a_cache_that_shows_left_padding_shows(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = KVCache.mask

    def without_padding(self: KVCache, new: int) -> Cached | None:
        return mask(KVCache(torch.zeros_like(self.padding), 0) if self.length == 0 else self, new)

    monkeypatch.setattr(KVCache, "mask", without_padding)
    assert failed(setup) == {ALL[8]}


def test_a_batch_that_keeps_the_wrong_rows_shows(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = KVCache.select_rows
    monkeypatch.setattr(KVCache, "select_rows", lambda self, rows: keep(self, rows - rows.min()))
    assert failed(setup) == {ALL[8]}


def test_saving_in_bfloat16_shows(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    state = folder._state
    monkeypatch.setattr(
        folder,
        "_state",
        lambda model: {key: value.bfloat16() for key, value in state(model).items()},
    )
    assert failed(setup) == {ALL[9], ALL[10]}


def test_saving_another_config_shows(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    write = config_json.config_json

    def without_theta(config: ModelConfig) -> dict[str, Any]:
        written = write(config)
        return {key: value for key, value in written.items() if not key.startswith("rope")}

    monkeypatch.setattr(folder, "config_json", without_theta)
    model = random_model(vocab_size=setup.tokenizer.vocab_size, rope_theta=500.0)
    assert failed(replace(setup, model=model)) == {ALL[10]}


@pytest.fixture
def project(
    tmp_path: Path, tiny_tokenizer: Path, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder as `dvc repro` leaves it, in which the command runs.

    One validation example is too long, so that rows and examples differ.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["simple-llama", "verify"])
    shutil.copyfile(tiny_tokenizer, "tokenizer.json")
    text = COMMITTED.read_text()
    for key, value in {
        "device": "cpu",
        "tokenizer_path": "tokenizer.json",
        "model_path": "base",
        "max_seq_len": "160",
    }.items():
        text = re.sub(f"(?m)^{key}: [^ ]+", f"{key}: {value}", text)
    Path("params.yaml").write_text(text)
    long = [{"role": "user", "content": "why? " * 200}, {"role": "assistant", "content": "so"}]
    write_prepared("train", conversations(12))
    write_prepared("val", [conversations(1)[0], long, *conversations(9)[1:]])
    params = Params().section(TokenizeParams)
    tokenize(params, open_tokenizer(params), "data/prepared", "data/tokens")
    save_model(setup.model, "base", "data/tokens/tokenizer")
    return tmp_path


def write_prepared(name: str, messages: Sequence[Sequence[Message]]) -> None:
    path = Path(f"data/prepared/{name}.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [json.dumps({"id": str(i), "messages": one}) for i, one in enumerate(messages)]
    path.write_text("\n".join(records) + "\n")


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_command_prints_a_line_a_check_and_writes_nothing(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(project)
    cli.main()
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("base on cpu, ") and first.endswith(", fp32")
    assert [line.split("  ")[0] for line in lines] == ALL
    assert all(line.endswith("  ok") for line in lines)
    assert "of 9 prompts" in lines[4]
    assert files(project) == before


def test_the_command_takes_the_tuned_model_where_there_is_one(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("models").mkdir()
    Path("base").rename("models/sft")
    cli.main()
    assert capsys.readouterr().out.startswith("models/sft on cpu")


def test_a_failed_check_is_one_line_and_exit_code_1(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROMPT_FORMATS, "simple_llama", ANOTHER_NEWLINE)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == "error: 1 of 11 checks failed: training prompt = inference prompt"
    assert capsys.readouterr().out.count("FAILED") == 1


@pytest.mark.parametrize(
    "absent", ["data/tokens", "data/tokens/tokenizer", "data/prepared/val.jsonl", "base"]
)
def test_without_a_run_there_is_nothing_to_verify(project: Path, absent: str) -> None:
    Path(absent).rename("elsewhere")
    with pytest.raises(SystemExit, match=r"^error: nothing to verify yet, .*run `dvc repro` first"):
        cli.main()


def test_tokens_of_another_file_are_refused(project: Path) -> None:
    write_prepared("val", conversations(4))
    with pytest.raises(SystemExit, match=r"was not made from .*: run `dvc repro` first"):
        cli.main()


def test_the_command_in_a_fresh_clone_exits_with_1_and_one_line(tmp_path: Path) -> None:
    shutil.copyfile(COMMITTED, tmp_path / "params.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "simple_llama.cli", "verify"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: nothing to verify yet, data/tokens/train.safetensors is absent: "
        "run `dvc repro` first\n"
    )
