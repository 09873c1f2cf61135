"""A folder's own chat template: ids and masks against `transformers`, and what a template may not
do."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from simple_llama.data import foreign_template
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.prompt_formats import Message
from simple_llama.errors import InputError
from tests.support.conversations import turns
from tests.support.templates import (
    NAMES,
    TAGS,
    TEMPLATES,
    foreign,
    of_transformers,
    template_folder,
)
from tests.support.tokenizer_kinds import CHATML, byte_level, with_tokens

CONVERSATIONS = [
    turns("What is it?", "It is a pear."),
    turns("q1", "a1", "q2", "a2", "q3", "a3", system="Be brief."),
    turns(" What\tis it? \n", "Fine: é 😀.\n\n\nYes.  \n", "\n\nAnd?", "ok ", system=" Be.\n"),
    turns("名前\r\n", "日本語 [INST] ### no", "123 456", "'s it's\n\n", system="\u2028"),
    turns("x" * 60, "全角\u00a0y\x85z", "\u200b", "..."),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By name: a tokenizer and its chat template."""
    root = tmp_path_factory.mktemp("templates")
    return {name: template_folder(name, root / name) for name in NAMES}


@pytest.fixture(scope="module")
def chats(folders: dict[str, Path]) -> dict[str, ChatTokenizer]:
    return {
        name: ChatTokenizer.from_path(folder, prompt_format="auto", system_prompt="")
        for name, folder in folders.items()
    }


def as_it_takes(name: str, messages: list[Message]) -> list[Message]:
    """For templates without a system role: the system prompt before the first message."""
    if name not in ("gemma", "mistral") or messages[0]["role"] != "system":
        return messages
    system, first, *rest = messages
    return [{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *rest]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("fixed_date")
def test_transformers_makes_the_same_ids(
    folders: dict[str, Path], chats: dict[str, ChatTokenizer], tmp_path: Path, name: str
) -> None:
    """Before and after publishing."""
    chat = chats[name]
    assert "prompt format template: its own chat template" in chat.description
    chat.save(tmp_path)
    template = (tmp_path / "chat_template.jinja").read_bytes()
    assert template == (TEMPLATES / f"{name}.jinja").read_bytes()
    again = ChatTokenizer.from_folder(tmp_path)
    for folder in (folders[name], tmp_path):
        theirs = of_transformers(folder)
        for conversation in CONVERSATIONS:
            messages = as_it_takes(name, conversation)
            prompt = theirs.apply_chat_template(
                messages[:-1], add_generation_prompt=True, return_dict=False
            )
            assert prompt == chat.prompt(conversation[:-1]) == again.prompt(conversation[:-1])
            [(ids, mask)] = chat.encode([conversation], "last_reply")
            whole = theirs.apply_chat_template(messages, return_dict=False)
            assert ids.tolist() == whole[: len(ids)]
            assert mask.tolist() == [i >= len(prompt) for i in range(len(ids))]
            assert ids[-1] == chat.stop_id
            rest = theirs.decode(whole[len(ids) :])
            assert rest.strip() in ("", "<|endoftext|>" if name == "phi3" else "")
            reply = chat.decode(ids[mask]).strip()
            assert reply.endswith(conversation[-1]["content"].strip())


@pytest.mark.parametrize("name", ["llama3", "gemma", "mistral", "smollm3", "phi3"])
def test_all_replies_are_trained_where_the_history_stays(
    chats: dict[str, ChatTokenizer], name: str
) -> None:
    chat = chats[name]
    [(ids, mask)] = chat.encode([CONVERSATIONS[1]], "all_replies")
    starts = np.flatnonzero(mask & ~np.r_[False, mask[:-1]])
    ends = np.flatnonzero(mask & ~np.r_[mask[1:], False])
    replies = [chat.decode(ids[a : b + 1]).strip() for a, b in zip(starts, ends)]
    assert replies == ["a1", "a2", "a3"] and set(ids[ends]) == {chat.stop_id}
    for start, asked in zip(starts, (2, 4, 6)):
        assert ids[:start].tolist() == chat.prompt(CONVERSATIONS[1][:asked])


def test_of_a_template_that_drops_earlier_thoughts_each_reply_is_an_example(
    chats: dict[str, ChatTokenizer],
) -> None:
    """With what the model really sees before it."""
    chat = chats["qwen3"]
    assert "it rewrites earlier replies" in chat.description
    conversation = turns("q", "<think>\nso\n</think>\n\na1", "q2", "<think>\nhm\n</think>\n\na2")
    batch = chat.encode_batch([turns("x", "y"), conversation], "all_replies")
    assert batch.rows.tolist() == [0, 1, 1]
    _, first, last = batch.examples()
    for (ids, mask), asked, thought in ((first, 1, "so"), (last, 3, "hm")):
        reply = chat.decode(ids[mask])
        assert reply == f"<think>\n{thought}\n</think>\n\na{(asked + 1) // 2}", "tokens, not text"
        assert ids[~mask].tolist() == chat.prompt(conversation[:asked])
    assert "so" not in chat.decode(last[0]) and "a1" in chat.decode(last[0])
    assert len(chat.encode([conversation], "last_reply")) == 1
    flagged = [conversation[0], {**conversation[1], "weight": 1}, *conversation[2:]]
    assert len(chat.encode([flagged], "last_reply")) == 2
    flagged[3] = {**flagged[3], "weight": 0}
    [(ids, _)] = chat.encode([flagged], "last_reply")
    assert ids.tolist() == first[0].tolist()


@pytest.mark.usefixtures("fixed_date")
def test_generation_blocks_say_what_is_trained(
    folders: dict[str, Path], chats: dict[str, ChatTokenizer]
) -> None:
    """But for what the prompt holds already, which no reply can begin with."""
    chat, theirs = chats["smollm3"], of_transformers(folders["smollm3"])
    off = turns("q1", "a1", "q2", "a2", system="Brief. /no_think")
    whole = theirs.apply_chat_template(off, return_dict=True, return_assistant_tokens_mask=True)
    [(ids, mask)] = chat.encode([off], "all_replies")
    assert whole["input_ids"][: len(ids)] == ids.tolist()
    assert not np.any(mask & ~np.array(whole["assistant_masks"][: len(ids)], bool))
    assert chat.decode(ids[mask]) == "a1a2"


def test_a_reply_that_the_blocks_leave_out_is_not_trained(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content.startswith('a') %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    folder = foreign(byte_level(tmp_path / "t.json", CHATML), tmp_path, template, "<|im_end|>")
    chat = ChatTokenizer.from_path(folder, prompt_format="template", system_prompt="")
    [(ids, mask)] = chat.encode([turns("q", "no", "q", "a", "q", "a")], "all_replies")
    assert chat.decode(ids[mask]) == "aa" and mask[-1], "the stop token is trained with the reply"
    assert [len(ids) for ids, _ in chat.encode([turns("q", "no")], "last_reply")] == [0]


def chatml(reply: str) -> str:
    """A template that writes replies so."""
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        f"{reply}{{% else %}}{{{{ m.content }}}}{{% endif %}}<|im_end|>\n{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def test_blocks_that_leave_out_how_a_reply_begins_are_refused_by_name(tmp_path: Path) -> None:
    """Else a prompt of evaluate would hold a part of the reference."""
    template = chatml("so: {% generation %}{{ m.content }}{% endgeneration %}")
    folder = foreign(byte_level(tmp_path / "t.json", CHATML), tmp_path, template, "<|im_end|>")
    with pytest.raises(InputError, match="block leaves out how the reply begins"):
        ChatTokenizer.from_path(folder, prompt_format="template", system_prompt="")


def test_auto_follows_generation_blocks(tmp_path: Path) -> None:
    """The prompts are those of chatml; what is trained is not."""
    block = "{% generation %}{{ m.content }}{% endgeneration %}"
    template = chatml(
        f"{{% if 'no' in m.content %}}{{{{ m.content }}}}{{% else %}}{block}{{% endif %}}"
    )
    folder = foreign(byte_level(tmp_path / "t.json", CHATML), tmp_path, template, "<|im_end|>")
    chat = ChatTokenizer.from_path(folder, prompt_format="auto", system_prompt="")
    assert "its own chat template" in chat.description
    [(ids, mask)] = chat.encode([turns("q", "no", "q", "yes")], "all_replies")
    assert chat.decode(ids[mask]) == "yes"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("{{ m.content.split('</think>')[-1].strip() }}", "leaves out text between <think> tags"),
        (
            "{{ m.content if loop.last else m.content.split('</think>')[-1].strip() }}",
            "rewrites earlier replies",
        ),
    ],
)
def test_what_becomes_of_thoughts_is_said(reply: str, said: str, tmp_path: Path) -> None:
    path = byte_level(tmp_path / "t.json", CHATML)
    folder = foreign(path, tmp_path, chatml(reply), "<|im_end|>")
    chat = ChatTokenizer.from_path(folder, prompt_format="template", system_prompt="")
    assert said in chat.description


@pytest.mark.parametrize("name", NAMES)
def test_control_tokens_in_messages_stay_text(chats: dict[str, ChatTokenizer], name: str) -> None:
    chat = chats[name]
    [(plain, _)] = chat.encode([turns("q", "a", "q", "a")], "last_reply")
    special = {i for i in plain.tolist() if chat.has_control([i])}
    written = [name for name in chat.control_ids if name not in TAGS]
    names = [*written, "<s>", "</s>", "<|im_end|>", "<|im_end|><|im_end|>"]
    hostile = "x" + "".join(names) + "< <|im_end|"
    [(ids, mask)] = chat.encode([turns(hostile, f"{hostile}y", hostile, hostile)], "last_reply")
    kept = [i for i in plain.tolist() if i in special]
    assert [i for i in ids.tolist() if i in special or chat.has_control([i])] == kept
    assert chat.decode(ids[mask]).removeprefix("<think>\n\n</think>\n\n").strip() == hostile


def test_a_token_that_is_text_is_control_where_the_template_writes_it(tmp_path: Path) -> None:
    """As those of DeepSeek; tags of thoughts are such in a reply, and text elsewhere."""
    markers = ("<|user|>", "<|bot|>", "<think>", "</think>")
    path = with_tokens(byte_level(tmp_path / "t.json", ("<|endoftext|>",)), markers)
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>' + m.content }}{% else %}"
        "{{ '<|bot|>' + m.content + eos_token }}{% endif %}{% endfor %}"
        "{# <think> </think> #}{% if add_generation_prompt %}{{ '<|bot|>' }}{% endif %}"
    )
    folder = foreign(path, tmp_path, template, "<|endoftext|>")
    chat = ChatTokenizer.from_path(folder, prompt_format="auto", system_prompt="")
    vocabulary = of_transformers(folder).get_vocab()
    text = "<think>b</think><|user|>"
    [(ids, mask)] = chat.encode([turns(text, text)], "last_reply")
    counts = [ids.tolist().count(vocabulary[marker]) for marker in markers]
    assert counts == [1, 1, 1, 1] and chat.decode(ids[mask]) == text
    assert chat.prompt(turns(text)).count(vocabulary["<think>"]) == 0


def test_a_template_that_takes_a_control_token_of_a_message_apart_is_refused_by_name(
    tmp_path: Path,
) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('<|im_end|>')[0] }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    folder = foreign(byte_level(tmp_path / "t.json", CHATML), tmp_path, template, "<|im_end|>")
    chat = ChatTokenizer.from_path(folder, prompt_format="template", system_prompt="")
    batch = chat.encode_batch([turns("q", "a"), turns("q<|im_end|>", "a")], "last_reply")
    assert batch.refused == {1: "it takes apart a control token in a message"}
    assert batch.lengths[0] > 0 == batch.lengths[1]
    with pytest.raises(InputError, match="takes apart a control token"):
        chat.prompt(turns("q<|im_end|>"))


@pytest.fixture
def half_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a template, instead of the two seconds that are said."""
    child = Path(foreign_template.__file__).read_text()
    limit = "\nMAX_CPU_SECONDS = 2\n"
    assert limit in child
    (tmp_path / "child.py").write_text(child.replace(limit, "\nMAX_CPU_SECONDS = 0.5\n"))
    monkeypatch.setattr(foreign_template, "__file__", str(tmp_path / "child.py"))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "2 s"),
        ("{% for i in range(99999) %}{{ 'abcdefghij' * 100 }}{% endfor %}", "writes more than"),
        ("{{ messages[0].content * 99999999999 }}", "needs more than 1024 MiB"),
        ("{{ raise_exception('not\ntoday') }}", "refuses any chat: not today"),
        ("{{ messages[9].content }}", "refuses any chat: list object has no element 9"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ ['a', 'b'] | random }}", "writes other text on each call"),
        ("{{ lipsum() }}", "writes other text on each call"),
        ("{{ messages.index }}", "writes other text on each call"),
        ("{% include '/etc/passwd' %}", "refuses any chat"),
        ("{% raw", "is invalid"),
        ("{{ messages[-1].content }}", "does not begin a reply where its prompt for one ends"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "ends replies with no control"),
        ("", "does not begin a reply"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(
    tmp_path: Path, template: str, said: str, half_a_second: None
) -> None:
    folder = foreign(byte_level(tmp_path / "t.json", CHATML), tmp_path, template, "<|im_end|>")
    for wanted in ("template", "auto"):
        with pytest.raises(InputError, match="its chat template ") as error:
            ChatTokenizer.from_path(folder, prompt_format=wanted, system_prompt="")
        assert said in str(error.value) and "\n" not in str(error.value)
        assert str(error.value).startswith(f"{folder / 'chat_template.jinja'}: ")
    assert "prompt_format (--prompt-format) replaces it" in str(error.value)
    chat = ChatTokenizer.from_path(folder, prompt_format="chatml", system_prompt="")
    assert chat.prompt(turns("q"))


def test_a_template_that_turns_hostile_later_is_one_line_and_the_next_row_is_rendered(
    tmp_path: Path, half_a_second: None
) -> None:
    template = (
        "{% for m in messages %}{% if m.content == 'loop' %}{% for i in range(99999) %}"
        "{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
        "{% if m.content == 'no' %}{{ raise_exception('I will\n not') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    folder = foreign(byte_level(tmp_path / "t.json", CHATML), tmp_path, template, "<|im_end|>")
    chat = ChatTokenizer.from_path(folder, prompt_format="template", system_prompt="")
    batch = chat.encode_batch([turns("no", "a"), turns("q", "a")], "last_reply")
    assert batch.refused == {0: "I will not"} and batch.lengths[1] > 0
    with pytest.raises(InputError, match=r"does not end within 2 s .* that begins 'loop'"):
        chat.encode_batch([turns("q", "a"), turns("loop", "a")], "last_reply")
    assert len(chat.prompt(turns("q"))) > 3


def test_template_wants_a_template(tmp_path: Path, tiny_tokenizer: Path) -> None:
    shutil.copyfile(tiny_tokenizer, tmp_path / "tokenizer.json")
    for path in (tiny_tokenizer, tmp_path):
        with pytest.raises(InputError, match="no chat template beside it"):
            ChatTokenizer.from_path(path, prompt_format="template", system_prompt="")


def test_white_space_before_a_reply_is_dropped_where_the_prompt_ends_in_some(
    chats: dict[str, ChatTokenizer],
) -> None:
    """Generation cannot begin with what the prompt's last token would have swallowed."""
    for name in ("qwen3", "smollm3", "gemma"):
        [(ids, _)] = chats[name].encode([turns("q", "\n\n a")], "last_reply")
        assert ids.tolist() == chats[name].encode([turns("q", "a")], "last_reply")[0][0].tolist()


def test_a_reply_that_runs_into_its_prompt_is_refused_by_name(tmp_path: Path) -> None:
    path = byte_level(tmp_path / "t.json", ("</s>",), words=False)
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}"
        "{{ m.content + eos_token }}{% endif %}{% endfor %}"
    )
    folder = foreign(path, tmp_path, template, "</s>")
    chat = ChatTokenizer.from_path(folder, prompt_format="auto", system_prompt="")
    batch = chat.encode_batch([turns("two", " three"), turns("two thr", "ee")], "last_reply")
    assert batch.lengths[0] > 0 == batch.lengths[1]
    assert "makes other ids of 'two thr' when 'ee' follows" in batch.refused[1]


@pytest.mark.parametrize("name", ["gemma", "llama3"])
def test_what_a_template_ends_texts_with_is_published(
    folders: dict[str, Path], chats: dict[str, ChatTokenizer], tmp_path: Path, name: str
) -> None:
    chats[name].save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    theirs = json.loads((folders[name] / "tokenizer_config.json").read_text())
    assert {key: config[key] for key in theirs} == theirs
    assert config["prompt_format"] == "template" and "chat_template" not in config
    if name == "gemma":  # its eos token ends no reply
        stops = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
        assert stops == [chats[name].stop_id, 2] == chats[name].stop_ids
