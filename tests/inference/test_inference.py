"""chat, generate and export as a user runs them, on a tiny model."""

import builtins
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from simple_llama import cli
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.prompt_formats import PROMPT_FORMATS
from simple_llama.inference import chat as chat_module
from simple_llama.inference import replies
from simple_llama.inference.chat import Conversation
from simple_llama.inference.portable_template import without_generation
from simple_llama.inference.replies import GenerationSettings, IncrementalDecoder, Replier
from simple_llama.inference.requests import read_requests
from simple_llama.model.decoder import Decoder
from simple_llama.model.folder import load_model, save_model
from tests.support.models import random_model

GREEDY = GenerationSettings(max_tokens=12, temperature=0.0, top_p=1.0, seed=0)


@pytest.fixture(scope="module")
def folder(tiny_chat: ChatTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: random weights that say something else after every prompt."""
    path = tmp_path_factory.mktemp("models")
    tiny_chat.save(path / "tokenizer")
    model = random_model(vocab_size=tiny_chat.vocab_size, max_position_embeddings=160)
    save_model(model, path / "model", path / "tokenizer")
    return path / "model"


@pytest.fixture(scope="module")
def tiny_chat(tiny_tokenizer: Path) -> ChatTokenizer:
    return ChatTokenizer.from_path(tiny_tokenizer, prompt_format="auto", system_prompt="Help.")


@pytest.fixture(scope="module")
def replier(folder: Path) -> Replier:
    return Replier(load_model(folder).eval(), ChatTokenizer.from_folder(folder))


Run = Callable[..., str]


@pytest.fixture
def run(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """`simple-llama ARGUMENTS`, in a folder of its own, with a standard input; its output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(replies, "uses_bf16", lambda device, precision: False)

    def command(*arguments: str, stdin: str = "") -> str:
        device = [] if arguments[0] == "export" else ["--device", "cpu"]
        options = ["--model", str(folder), *device]
        monkeypatch.setattr(sys, "argv", ["simple-llama", arguments[0], *options, *arguments[1:]])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        cli.main()
        return capsys.readouterr().out

    return command


TEXTS = ["plain", "naïve café", "漢字 and 👩\u200d🚀!", "tab\there\n\nend", "\ufffd is a character"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_character_of_several_tokens_is_given_whole(text: str, tiny_tokenizer: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_tokenizer))
    ids = tokenizer.encode(text).ids
    stream = IncrementalDecoder(tokenizer.decode)
    pieces = [stream.push(token) for token in ids] + [stream.finish()]
    assert "".join(pieces) == tokenizer.decode(ids) == text
    assert sum(piece.count("\ufffd") for piece in pieces) == text.count("\ufffd")
    assert max(map(len, pieces)) < len(text), "it was to come in pieces"


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, 300), max_size=40))
def test_whatever_the_tokens_the_pieces_make_the_text(
    ids: list[int], tiny_chat: ChatTokenizer
) -> None:
    stream = IncrementalDecoder(tiny_chat.decode)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == tiny_chat.decode(ids)


def read_by(model: Decoder) -> list[int]:
    """How many ids each of the model's steps reads, from now on."""
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape[1]))
    return seen


def test_a_conversation_is_read_once(folder: Path) -> None:
    tokenizer = ChatTokenizer.from_folder(folder)
    model = load_model(folder).eval()
    seen = read_by(model)

    def said(talk: Conversation, text: str) -> str:
        talk.add_message(text)
        return "".join(talk.reply())

    talk = Conversation("it", Replier(model, tokenizer), None, GREEDY)
    answers = [said(talk, text) for text in ("What is left?", "And now?")]
    prompt = tokenizer.prompt(
        [
            {"role": "user", "content": "What is left?"},
            {"role": "assistant", "content": answers[0]},
            {"role": "user", "content": "And now?"},
        ]
    )
    first, second = (read for read in seen if read > 1)
    assert second <= len(prompt) - first, "the first prompt is not read again"
    fresh = Replier(model, tokenizer).reply(prompt, GREEDY, torch.Generator())
    assert "".join(fresh) == answers[1]


def test_a_reply_that_was_left_stands_as_far_as_it_came(replier: Replier) -> None:
    talk = Conversation("it", replier, None, GREEDY)
    talk.add_message("Sort the list.")
    reply = talk.reply()
    begun = next(reply) + next(reply)
    reply.close()
    assert talk._turns[-1] == {"role": "assistant", "content": begun}
    talk.add_message("Go on.")
    again = "".join(talk.reply())
    fresh = Conversation("it", Replier(replier.model, replier.tokenizer), None, GREEDY)
    fresh._turns = talk._turns[:2]
    fresh.add_message("Go on.")
    assert "".join(fresh.reply()) == again


def test_a_forgotten_turn_is_said_to_be(replier: Replier) -> None:
    talk = Conversation("it", replier, None, GREEDY)
    forgotten = []
    for i in range(5):
        forgotten.append(talk.add_message(f"How many apples are left of {i}, and why? " * 2))
        assert "".join(talk.reply()) is not None
    assert forgotten[0] == 0 and sum(forgotten) > 0
    assert talk._turns[0]["role"] == "user"


def test_a_message_that_is_too_long_is_as_if_never_said(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        SystemExit, match=r"a prompt of \d+ tokens, the model has positions for 160"
    ):
        run("chat", stdin="why? " * 400)


def test_commands_and_seeds(run: Run) -> None:
    talk = "/help\nWhat?\n/reset\nWhat?\n  /reset\n/system\n\n/nothing\n/exit\nnever said"
    said = run("chat", "--max-tokens", "5", "--seed", "3", stdin=talk)
    assert said.startswith("/reset  ")
    assert run("chat", "--max-tokens", "5", "--seed", "3", stdin=talk) == said
    assert run("chat", "--max-tokens", "5", "--seed", "4", stdin=talk) != said


def test_two_models_answer_one_after_the_other_in_a_pipe(run: Run, folder: Path) -> None:
    arguments = ("chat", "--temperature", "0", "--max-tokens", "4", "--compare", str(folder))
    said = run(*arguments, stdin="What?\n").split(f"{folder}: ")
    assert said[0] == "" and len(said) == 3
    assert said[1] == said[2], "it is the same model"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def reconfigure(self, **_settings: object) -> None:
        pass


@pytest.mark.parametrize("columns", [100, 60])
def test_a_session_on_a_terminal(
    columns: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed: Iterator[str | type[BaseException]] = iter(
        ["What?", KeyboardInterrupt, "why? " * 400, "/nothing", EOFError]
    )

    def answer(_prompt: str = "") -> str:
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    screen = Terminal()
    monkeypatch.setattr(builtins, "input", answer)
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    chat_module.chat(
        model=str(folder),
        prompt_format="auto",
        system="Help.",
        tools=None,
        compare=str(folder),
        device="cpu",
        settings=GREEDY,
    )
    shown = screen.getvalue()
    assert ("│" in shown) == (columns == 100)
    assert "(/exit or Ctrl-D leaves)" in shown
    assert "the model has positions for 160)" in shown, "said, and the conversation goes on"
    assert "(no command /nothing: /help lists them)" in shown


def test_ctrl_c_stops_a_reply_and_not_the_conversation(
    replier: Replier, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = Conversation("it", replier, None, GREEDY)
    shown = iter([None, None])

    def interrupted(text: str) -> str:
        if next(shown, text) is text:
            raise KeyboardInterrupt
        return text

    monkeypatch.setattr(chat_module, "printable", interrupted)
    monkeypatch.setattr(chat_module, "_note", lambda text, interactive: print(f"({text})"))
    chat_module._converse([talk], "What?", interactive=True)
    assert capsys.readouterr().out.endswith("\n(stopped)\n")
    assert [turn["role"] for turn in talk._turns] == ["user", "assistant"]


def records(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_one_prompt_gives_its_reply_and_several_give_records(run: Run) -> None:
    alone = run("generate", "--prompt", "What?", "--max-tokens", "6")
    both = records(run("generate", "--prompt", "Why?", "--prompt", "What?", "--max-tokens", "6"))
    assert [record["prompt"] for record in both] == ["Why?", "What?"]
    assert alone == f"{both[1]['reply']}\n"


def row(messages: Sequence[str]) -> dict[str, object]:
    roles = ("user", "assistant")
    return {
        "messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(messages)]
    }


ASKED = [
    row(["What is the capital?"]),
    row(["What is the capital?", "Pertola."]),
    row(["One?", "1", "Two?"]),
]
OTHER_SHAPES = {
    "sharegpt": [{"conversations": [{"from": "human", "value": "What is the capital?"}]}],
    "alpaca": [{"instruction": "What is the capital?", "input": "", "output": ""}],
    "prompt": [{"prompt": "What is the capital?"}],
    "messages in a prompt": [{"prompt": [{"role": "user", "content": "What is the capital?"}]}],
    "simple_llama": [{"User": ["What is the capital?"], "Assistant": []}],
    "simple_llama, bare": [{"User": "What is the capital?"}],
}


def test_a_file_is_answered_in_its_order_whatever_the_batches(run: Run) -> None:
    Path("asked.json").write_text(json.dumps(ASKED * 3))
    given = [
        run("generate", "--file", "asked.json", "--batch-size", size, "--max-tokens", "9")
        for size in ("1", "2", "100")
    ]
    assert given[0] == given[1] == given[2]
    first, second, third = records(given[0])[:3]
    assert first["id"] == "asked.json[0]" and "reference" not in first
    assert second["reference"] == "Pertola." and second["reply"] == first["reply"]
    assert third["prompt"] == "Two?" and "reference" not in third
    run("generate", "--file", "asked.json", "--max-tokens", "9", "--out", "said.jsonl")
    assert Path("said.jsonl").read_text() == given[0]


@pytest.mark.parametrize("last", ['{"prompt": ', json.dumps({"prompt": "a" * 400})])
def test_a_faulty_row_is_found_before_the_first_reply(
    last: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("simple_llama.inference.batch.generate", never)
    Path("asked.jsonl").write_text('{"prompt": "a"}\n' * 40 + last + "\n")
    with pytest.raises(SystemExit, match=r"asked.jsonl\[40\]"):
        run("generate", "--file", "asked.jsonl", "--batch-size", "1")


def test_a_blank_system_prompt_of_a_row_is_not_the_models_own(tmp_path: Path) -> None:
    turn = {"role": "user", "content": "q"}
    said = [[turn], [{"role": "system", "content": ""}, turn]]
    path = tmp_path / "asked.json"
    path.write_text(json.dumps([{"messages": messages} for messages in said]))
    systems = [request.messages[0]["content"] for request in read_requests(str(path), "own")]
    assert systems == ["own", ""]


def test_a_byte_order_mark_is_no_part_of_a_prompt(run: Run) -> None:
    Path("one.txt").write_text("What?\n", encoding="utf-8-sig")
    Path("both.txt").write_bytes(Path("one.txt").read_bytes() * 2)
    said = records(run("generate", "--file", "both.txt", "--max-tokens", "2"))
    assert [record["prompt"] for record in said] == ["What?", "What?"]


@pytest.mark.parametrize("shape", OTHER_SHAPES)
def test_every_format_may_leave_the_last_reply_open(shape: str, run: Run) -> None:
    Path("asked.json").write_text(json.dumps(OTHER_SHAPES[shape]))
    Path("asked.txt").write_text("\nWhat is the capital?\n \n")
    [expected] = records(run("generate", "--file", "asked.txt", "--max-tokens", "4"))
    [given] = records(run("generate", "--file", "asked.json", "--max-tokens", "4"))
    assert expected["id"] == "asked.txt[1]"
    assert {**given, "id": ""} == {**expected, "id": ""}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate"], "wanted --prompt TEXT"),
        (["generate", "--prompt", "a", "--file", "b"], "wanted --prompt TEXT"),
        (["generate", "--prompt", " "], "--prompt: an empty text"),
        (["generate", "--prompt", "\udcff"], "--prompt: not UTF-8 text"),
        (["generate", "--prompt", "a" * 400], r"prompt\[0\]: a prompt of \d+ tokens, .* for 160"),
        (["generate", "--prompt", "a", "--batch-size", "0"], "--batch-size: got 0"),
        (["generate", "--prompt", "a", "--max-tokens", "0"], "--max-tokens: got 0"),
        (["generate", "--prompt", "a", "--temperature", "nan"], "--temperature: got nan"),
        (["generate", "--prompt", "a", "--top-p", "0"], "--top-p: got 0"),
        (["generate", "--prompt", "a", "--seed", "-1"], "--seed: got -1"),
        (["generate", "--prompt", "a", "--device", "tpu"], "device: got 'tpu'"),
        (["generate", "--file", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["generate", "--file", "broken.jsonl", "--out", "said.jsonl"], r"broken.jsonl\[1\]: not"),
        (["generate", "--file", "latin.txt"], "latin.txt: not UTF-8"),
        (["generate", "--prompt", "a", "--out", "models/sft/said.jsonl"], "models/sft is written"),
        (["generate", "--prompt", "a", "--out", "models"], "models/sft is written"),
        (["chat", "--system", "\udcff"], "--system: not UTF-8 text"),
        (["chat", "--compare", "nowhere"], "nowhere: no such model"),
        (["export", "full"], "full: exists already, wanted a new or empty folder"),
        (["export", "broken.jsonl"], "exists already"),
        (["export", "models/sft"], "models/sft is written and deleted by DVC"),
        (["export", "models/sft/inner"], "models/sft is written and deleted by DVC"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    arguments: list[str], said: str, run: Run, tmp_path: Path
) -> None:
    Path("dvc.yaml").write_text("stages:\n  train:\n    outs:\n      - models/sft\n")
    Path("broken.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    Path("latin.txt").write_bytes(b"caf\xe9")
    Path("full").mkdir()
    Path("full/file").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit, match=said):
        run(*arguments)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_exported_model_is_the_same_in_transformers(run: Run, folder: Path) -> None:
    import transformers

    Path("empty").mkdir()
    assert "model_path: empty" in run("export", "empty")
    theirs = transformers.AutoModelForCausalLM.from_pretrained("empty")
    ids = torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(1))
    ours = load_model(folder).eval()
    with torch.inference_mode():
        assert (theirs(ids).logits - ours.logits(ours(ids))).abs().max() < 1e-4
    tokenizer = transformers.AutoTokenizer.from_pretrained("empty")
    message = [{"role": "user", "content": "What?"}]
    prompt: Any = tokenizer.apply_chat_template(
        message, add_generation_prompt=True, return_dict=True
    )
    assert prompt["input_ids"] == ChatTokenizer.from_folder(folder).prompt(message)
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert names < {path.name for path in Path("empty").iterdir()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_exported_in_the_type_that_is_asked_for(
    dtype: str, run: Run, folder: Path
) -> None:
    run("export", "out", "--dtype", dtype)
    assert json.loads(Path("out/config.json").read_text())["dtype"] == dtype
    kind = getattr(torch, dtype)
    for mine, theirs in zip(
        load_model("out").parameters(), load_model(folder).parameters(), strict=True
    ):
        assert torch.equal(mine, theirs.to(kind).float())


@pytest.mark.parametrize("name", PROMPT_FORMATS)
def test_an_exported_template_is_plain_jinja_that_makes_the_same(
    name: str, tiny_tokenizer: Path, folder: Path, run: Run
) -> None:
    import transformers
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    shutil.copytree(folder, "model")
    literal = "It's {% generation %}, {{ so }} \\' said \" {%- endgeneration %}"
    ChatTokenizer.from_path(
        tiny_tokenizer, prompt_format=name, system_prompt=literal, model_max_length=64
    ).save("model")
    run("export", "out", "--model", "model")
    template = json.loads(Path("out/tokenizer_config.json").read_text())["chat_template"]
    tokenizer = transformers.AutoTokenizer.from_pretrained("model")
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    conversation = [
        {"role": "user", "content": " q\n"},
        {"role": "assistant", "content": "\n a "},
        {"role": "user", "content": "again"},
    ]
    for messages in (conversation, [{"role": "system", "content": "s"}, *conversation]):
        said = plain.from_string(template).render(
            messages=messages, add_generation_prompt=True, **special
        )
        assert said == tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )


def test_a_generation_block_of_any_template_keeps_its_white_space() -> None:
    template = "a\n  {%- generation +%}\n  it's {# {% generation %} #}\n{% endgeneration -%}\n b"
    assert without_generation(template) == (
        "a\n  {%- if true +%}\n  it's {# {% generation %} #}\n{% endif -%}\n b"
    )
