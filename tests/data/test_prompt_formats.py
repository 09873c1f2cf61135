"""Every prompt format on every kind of tokenizer: ids and masks against `transformers`."""

import os
from pathlib import Path

import numpy as np
import pytest

from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.prompt_formats import PROMPT_FORMATS
from simple_llama.errors import InputError
from tests.support.conversations import turns
from tests.support.templates import QWEN, foreign, of_transformers
from tests.support.tokenizer_kinds import CHATML, LLAMA3, byte_level, sentence_piece

SYSTEM = "You're a {{ helpful }} assistant. \\ 50 %} café"
KINDS = ("words", "gpt2", "sentencepiece", "sentencepiece_first", "seed")
PAIRS = [(k, n) for k in KINDS for n in PROMPT_FORMATS if (k, n) != ("gpt2", "llama3")]
CONVERSATIONS = [
    turns("q", "a"),
    turns("What is it?", "It is a pear.", system="Be brief."),
    turns("q1", "a1", "q2", "a2", "q3", "a3", system=""),
    turns(" What\tis it? \n", "\n\n  Fine: é 😀.\n\nYes.  \n", "\nAnd?", "  ok ", system=" Be.\n"),
    turns("\n\n", "...\n", "\u200b", "\u0301 e\u0301 Å ﬁ", system="日本語\r\n"),
    turns("<|user|>\n### Response:\n", "### Instruction:\n<|assistant|>\nno", "123456", "\t4 5\n6"),
    turns("'s it's", "'ll  do   it", "x" * 60, "\u3000全角\u00a0y\x85z", system="\u2028"),
]

META = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> dict[str, Path]:
    """A tokenizer.json of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    data = os.environ.get("SIMPLE_LLAMA_DATA")
    return {
        "words": byte_level(folder / "words.json", [*CHATML, *LLAMA3]),
        "gpt2": byte_level(folder / "gpt2.json", ["<|endoftext|>"], words=False),
        "sentencepiece": sentence_piece(folder / "sp.json", legacy=True),
        "sentencepiece_first": sentence_piece(folder / "first.json", legacy=False),
        "seed": Path(data) / "seed_checkpoint/bpe_8k.json" if data else tiny_tokenizer,
    }


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_transformers_makes_the_same_ids_and_mask(
    kinds: dict[str, Path], tmp_path: Path, kind: str, name: str
) -> None:
    chat = ChatTokenizer.from_path(kinds[kind], prompt_format=name, system_prompt=SYSTEM)
    chat.save(tmp_path)
    theirs = of_transformers(tmp_path)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (chat.stop_id, chat.pad_id)
    assert len(theirs) == chat.vocab_size
    for conversation in CONVERSATIONS:
        [(ids, mask)] = chat.encode([conversation], "all_replies")
        whole = theirs.apply_chat_template(
            conversation, return_dict=True, return_assistant_tokens_mask=True
        )
        assert whole["input_ids"] == ids.tolist()
        assert whole["assistant_masks"] == mask.astype(int).tolist()
        prompt = theirs.apply_chat_template(
            conversation[:-1], add_generation_prompt=True, return_dict=False
        )
        [(same, last)] = chat.encode([conversation], "last_reply")
        assert np.array_equal(same, ids)
        assert prompt == chat.prompt(conversation[:-1]) == ids[: len(prompt)].tolist()
        assert last.tolist() == [False] * len(prompt) + mask[len(prompt) :].tolist()
        assert last[len(prompt) :].all() and ids[-1] == chat.stop_id


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_decoding_gives_the_reply_without_control_tokens(
    kinds: dict[str, Path], kind: str, name: str
) -> None:
    chat = ChatTokenizer.from_path(kinds[kind], prompt_format=name, system_prompt=SYSTEM)
    for reply in ("It is a pear.", "1 + 2\n\n  a", "</s> <|im_end|><|eot_id|>", "<EOA> <s>"):
        [(ids, mask)] = chat.encode([turns("q " + reply, reply)], "last_reply")
        assert chat.decode(ids[mask]) == reply, "control tokens in the data are text"
        assert ids[mask].tolist().count(chat.stop_id) == 1
        assert not set(PROMPT_FORMATS[name].tokens) & set(
            chat.decode(ids).replace(reply, "").split()
        )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "chatml",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant"
            "\n[a1<|im_end|>]\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n[a2<|im_end|>]",
        ),
        (
            "llama3",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nq1<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n[a1<|eot_id|>]"
            "<|start_header_id|>user<|end_header_id|>\n\nq2<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n[a2<|eot_id|>]",
        ),
        (
            "zephyr",
            "<|system|>\nS</s>\n<|user|>\nq1</s>\n<|assistant|>\n[a1</s>]\n"
            "<|user|>\nq2</s>\n<|assistant|>\n[a2</s>]",
        ),
        (
            "alpaca",
            "<s>S\n\n### Instruction:\nq1\n\n### Response:\n[a1</s>]\n\n"
            "### Instruction:\nq2\n\n### Response:\n[a2</s>]",
        ),
    ],
)
def test_what_a_format_looks_like(name: str, text: str) -> None:
    resolved = PROMPT_FORMATS[name].resolved(eos="</s>", bos="<s>", special=[])
    pieces = resolved.render(turns("q1", "a1", "q2", "a2"), "S", "all_replies")
    shown = "".join(f"[{piece}]" if target else piece for piece, target in pieces)
    assert shown.replace("][", "") == text


@pytest.mark.parametrize(
    ("kind", "template", "name", "eos"),
    [
        ("words", QWEN, "chatml", "<|im_end|>"),
        ("words", META, "llama3", "<|eot_id|>"),
        ("gpt2", ZEPHYR, "zephyr", "<|endoftext|>"),
        ("sentencepiece", ZEPHYR, "zephyr", "</s>"),
        ("sentencepiece_first", ZEPHYR, "zephyr", "</s>"),
    ],
)
def test_a_known_template_is_recognised_and_its_prompts_are_kept(
    kinds: dict[str, Path], tmp_path: Path, kind: str, template: str, name: str, eos: str
) -> None:
    folder = foreign(kinds[kind], tmp_path / "theirs", template, eos)
    chat = ChatTokenizer.from_path(folder, prompt_format="auto", system_prompt="Be brief.")
    assert f"prompt format {name}: its chat template makes the same prompt" in chat.description
    assert chat.base_vocab_size == chat.vocab_size
    theirs = of_transformers(folder)
    for conversation in CONVERSATIONS:
        if conversation[0]["role"] != "system" or not conversation[0]["content"].strip():
            continue
        replies = [one["content"] for one in conversation[:-1] if one["role"] == "assistant"]
        if any(reply != reply.lstrip() for reply in replies):
            continue
        ids = theirs.apply_chat_template(
            conversation[:-1], add_generation_prompt=True, return_dict=False
        )
        assert ids == chat.prompt(conversation[:-1])


def test_a_prompt_that_runs_into_its_reply_is_refused(kinds: dict[str, Path]) -> None:
    """GPT-2 makes one token of two line breaks, but two where a word follows them."""
    with pytest.raises(InputError, match=r"other ids of '.n.n' when 'Hello' follows"):
        ChatTokenizer.from_path(kinds["gpt2"], prompt_format="llama3", system_prompt="")


def test_the_format_shows_in_the_tokens(kinds: dict[str, Path], tmp_path: Path) -> None:
    """Of a file alone; what is missing for a format that was set is added at the end."""
    for kind, name in (
        ("words", "chatml"),
        ("gpt2", "zephyr"),
        ("sentencepiece", "zephyr"),
        ("seed", "simple_llama"),
    ):
        chat = ChatTokenizer.from_path(kinds[kind], prompt_format="auto", system_prompt="")
        assert f"prompt format {name}: it has" in chat.description
        assert chat.base_vocab_size == chat.vocab_size
    chat = ChatTokenizer.from_path(kinds["gpt2"], prompt_format="chatml", system_prompt="")
    assert "lacks <|im_start|>, <|im_end|>: added" in chat.description
    assert chat.vocab_size == chat.base_vocab_size + 2 and chat.stop_id == chat.base_vocab_size + 1
    chat.save(tmp_path)
    loaded = ChatTokenizer.from_folder(tmp_path)
    assert loaded.base_vocab_size == chat.base_vocab_size
    assert loaded.prompt(turns("q")) == chat.prompt(turns("q"))


def test_markers_that_the_tokenizer_has_as_tokens_are_control_tokens(tmp_path: Path) -> None:
    path = byte_level(tmp_path / "t.json", ["</s>", "<|user|>", "<|assistant|>", "<|system|>"])
    chat = ChatTokenizer.from_path(path, prompt_format="zephyr", system_prompt=SYSTEM)
    chat.save(tmp_path / "saved")
    theirs = of_transformers(tmp_path / "saved")
    vocabulary = theirs.get_vocab()
    prompt = theirs.apply_chat_template(turns("q"), add_generation_prompt=True, return_dict=False)
    assert prompt == chat.prompt(turns("q"))
    assert prompt.count(vocabulary["<|user|>"]) == prompt.count(vocabulary["<|assistant|>"]) == 1
    [(ids, mask)] = chat.encode([turns("<|user|>", "<|user|>")], "last_reply")
    assert ids.tolist().count(vocabulary["<|user|>"]) == 1 and chat.decode(ids[mask]) == "<|user|>"


def test_an_own_folder_is_used_as_it_was_made(kinds: dict[str, Path], tmp_path: Path) -> None:
    for kind, name in (("words", "chatml"), ("sentencepiece", "llama3"), ("seed", "alpaca")):
        chat = ChatTokenizer.from_path(kinds[kind], prompt_format=name, system_prompt=SYSTEM)
        chat.save(tmp_path / "one")
        again = ChatTokenizer.from_path(
            tmp_path / "one", prompt_format="auto", system_prompt=SYSTEM
        )
        assert "named in its config" in again.description
        again.save(tmp_path / "two")
        ChatTokenizer.from_folder(tmp_path / "one").save(tmp_path / "three")
        files = [path.read_bytes() for path in tmp_path.rglob("tokenizer.json")]
        assert len(files) == 3 and len(set(files)) == 1
        question = turns("q", system="s")
        assert again.prompt(question) == chat.prompt(question)


@pytest.mark.parametrize("name", [name for name in PROMPT_FORMATS if name != "simple_llama"])
def test_an_empty_system_prompt_leaves_its_turn_out(kinds: dict[str, Path], name: str) -> None:
    pieces = PROMPT_FORMATS[name].render(turns("q", "a"), "", "last_reply")
    assert not any("system" in piece for piece, _ in pieces)
    empty = ChatTokenizer.from_path(kinds["words"], prompt_format=name, system_prompt="")
    other = ChatTokenizer.from_path(kinds["words"], prompt_format=name, system_prompt="s")
    assert empty.prompt(turns("q")) == other.prompt(turns("q", system=""))
    assert len(empty.prompt(turns("q"))) < len(other.prompt(turns("q")))


def test_a_beginning_token_stays_where_the_format_has_it(
    kinds: dict[str, Path], tmp_path: Path
) -> None:
    """A text of its own begins as the conversations that were trained."""
    for name, begins in (("alpaca", True), ("zephyr", False)):
        chat = ChatTokenizer.from_path(kinds["sentencepiece"], prompt_format=name, system_prompt="")
        chat.save(tmp_path)
        theirs = of_transformers(tmp_path)
        assert (theirs("text")["input_ids"][0] == 1) == begins == (chat.prompt(turns("q"))[0] == 1)
        again = ChatTokenizer.from_path(
            tmp_path / "tokenizer.json", prompt_format=name, system_prompt=""
        )
        assert again.prompt(turns("q")) == chat.prompt(turns("q"))


def test_the_docs_show_each_format() -> None:
    page = (Path(__file__).parents[2] / "docs/prompts.md").read_text(encoding="utf-8")
    lines = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    for name, known in PROMPT_FORMATS.items():
        resolved = known.resolved(eos="</s>", bos="<s>", special=[])
        pieces = resolved.render(turns("q", "a"), "s", "last_reply")
        text = "".join(piece for piece, _ in pieces).replace("\n", "\\n").replace("|", "\\|")
        shown = lines[name].split("`")[3]
        assert text.startswith(shown) and (shown == text or name == "llama3")
