"""Rows of every format → conversations, or the precise reason why not."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from simple_llama.data.formats import DATA_FORMATS, NEVER_DETECTED, ConversationReader
from simple_llama.data.message_lists import Conversation
from simple_llama.data.rows import RepeatedKey, Row, RowError
from simple_llama.params.prepare import PrepareParams

ROW = {"Template": ["CUSTOM"], "User": ["q1", "q2"], "Assistant": ["a1", "a2"]}


def row(value: Any, file: str = "x.json") -> Row:
    return Row(f"{file}[0]", file, value, "")


def to_conversation(value: Any, data_format: str = "auto") -> Conversation:
    return ConversationReader(data_format)(row(value))


def test_simple_llama_rows() -> None:
    conversation = to_conversation({**ROW, "Category": "facts"})
    assert [turn["content"] for turn in conversation.turns] == ["q1", "a1", "q2", "a2"]
    assert conversation.system is None and conversation.category == "facts"
    assert to_conversation({**ROW, "Template": ["Be brief."]}).system == "Be brief."


def test_a_bare_string_is_a_list_of_one_and_not_its_first_letter() -> None:
    row = {"Template": "CUSTOM", "User": "What?", "Assistant": "That."}
    conversation = to_conversation(row)
    assert conversation.system is None
    assert [turn["content"] for turn in conversation.turns] == ["What?", "That."]
    assert to_conversation({**row, "Template": "Be brief."}).system == "Be brief."


def test_messages_rows() -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    conversation = to_conversation({"messages": messages, "category": None})
    assert (conversation.system, conversation.turns) == ("s", messages[1:])
    assert to_conversation({"messages": messages[1:]}).system is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], "the row is a list, wanted an object"),
        (None, "the row is null, wanted an object"),
        ({}, "keys none, wanted 'messages' or"),
        ({"question": "q"}, "keys 'question', wanted 'messages' or"),
        ({"User": ["q1", "q2"], "Assistant": ["a"]}, "'User' has 2 turns, 'Assistant' 1"),
        ({"User": ["q"]}, "no 'Assistant'"),
        ({"User": [], "Assistant": []}, "'User' and 'Assistant' are empty"),
        ({"User": [1], "Assistant": ["a"]}, "'User'[0] is a number, wanted text"),
        ({"User": {"q": 1}, "Assistant": ["a"]}, "'User' is an object, wanted a list of texts"),
        ({**ROW, "Template": ["a", "b"]}, "'Template' has 2 system prompts, wanted 1"),
        ({**ROW, "Category": {"a": 1}}, "'Category' is an object, wanted text or a list of texts"),
        ({"messages": "hi"}, "'messages' is text, wanted a list"),
        ({"messages": []}, "the list of messages holds no user turn"),
        ({"messages": ["hi"]}, "messages[0] is text, wanted an object"),
        (
            {"messages": [{"role": "user", "content": None}]},
            "messages[0]: 'content' is null, wanted text",
        ),
        (
            {"messages": [{"role": "assistant", "content": "a"}]},
            "messages[0]: role 'assistant', wanted 'user'",
        ),
        (
            {"messages": [{"role": "user", "content": "q"}]},
            "the last message is not the assistant's",
        ),
    ],
)
def test_a_row_of_the_wrong_shape_says_precisely_why(value: Any, message: str) -> None:
    with pytest.raises(RowError) as error:
        to_conversation(value)
    assert message in str(error.value) and error.value.reason


def test_a_repeated_key_rejects_the_row() -> None:
    with pytest.raises(RowError, match="key 'User' stands twice"):
        to_conversation(RepeatedKey("User"))


def texts(conversation: Conversation) -> list[str]:
    roles = ("user", "assistant")
    assert [turn["role"] for turn in conversation.turns] == [
        roles[index % 2] for index in range(len(conversation.turns))
    ]
    return [turn["content"] for turn in conversation.turns]


def said(*pairs: tuple[str, Any], author: str = "role", text: str = "content") -> list[Any]:
    return [{author: name, text: content} for name, content in pairs]


CHAT = said(("user", "q"), ("assistant", "a"))
THOUGHT = {"role": "assistant", "content": "a", "reasoning_content": "hm", "thinking": None}


@pytest.mark.parametrize(
    ("row", "dropped"),
    [
        ({**ROW, "id": 3, "source": "web", "context": ""}, []),
        ({"instruction": "q", "output": "a", "context": "c", "inputs": "i"}, ["context", "inputs"]),
        ({"messages": [CHAT[0], THOUGHT], "tools": "[]"}, []),
        ({"conversations": CHAT, "thoughts": ["t"], "score": 1}, ["thoughts"]),
        ({"prompt": CHAT[:1], "completion": [THOUGHT], "seen": 1}, ["seen"]),
        ({"messages": [{**CHAT[0], "value": "other"}, CHAT[1]]}, ["messages.value"]),
    ],
)
def test_a_key_that_nobody_reads_is_counted(row: dict[str, Any], dropped: list[str]) -> None:
    read = ConversationReader()
    for _ in range(2):
        read(Row("a[0]", "a", row, json.dumps(row)))
    assert read.dropped_keys == dict.fromkeys(dropped, 2)


def test_hostile_keys_are_bounded_and_can_be_written() -> None:
    read = ConversationReader()
    for key in ("\ud800", "\x1b[31mred", "k" * 1000, *map(str, range(5000))):
        row = {"instruction": "q", "output": "a", key: 1}
        read(Row("a[0]", "a", row, json.dumps(row)))
    assert len(read.dropped_keys) == 101 and read.dropped_keys["(further keys)"] == 4903
    assert all(key.isprintable() and len(key) <= 60 for key in read.dropped_keys)
    assert read.dropped_keys["\\ud800"] == 1


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q", "output": "a"},
        {"conversations": CHAT},
        {"messages": CHAT},
        {"prompt": "q", "completion": "a"},
    ],
)
def test_a_system_prompt_may_be_called_so(row: dict[str, Any]) -> None:
    assert to_conversation({**row, "system_prompt": "s"}).system == "s"


def test_null_is_absent() -> None:
    """Concatenated data sets have the keys of all of them in every row."""
    others = {"messages": None, "conversations": None, "User": None, "prompt": None}
    row = {**others, "instruction": "Add.", "input": None, "output": "3", "category": None}
    assert texts(to_conversation(row)) == ["Add.", "3"]
    assert texts(to_conversation({**row, "messages": said(("user", "q"), ("assistant", "a"))}))
    message = {"from": "human", "value": None, "content": "q"}
    both = {"conversations": [message, {"from": "gpt", "value": "a"}]}
    assert texts(to_conversation(both)) == ["q", "a"]
    with pytest.raises(RowError, match="wanted 'messages' or"):
        to_conversation(dict.fromkeys(row))


@pytest.mark.parametrize("more", ["", None, "<noinput>", " <NoInput>\n"])
def test_no_input_is_no_line(more: str | None) -> None:
    row = {"instruction": "Add.", "input": more, "output": "3"}
    assert texts(to_conversation(row)) == ["Add.", "3"]


def test_an_input_alone_is_the_prompt() -> None:
    row = {"instruction": "", "input": "1 2", "output": "3"}
    assert texts(to_conversation(row)) == ["1 2", "3"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(7, "7"), (["a", "b", None], "a, b"), ([], None), (True, "true"), (1.5, "1.5"), (None, None)],
)
def test_a_category_may_be_a_number_or_a_list(value: Any, shown: str | None) -> None:
    assert to_conversation({**ROW, "category": value, "Category": None}).category == shown


def test_a_message_may_have_its_text_under_text_and_says_where_it_looked() -> None:
    turns = said(("user", "q"), ("assistant", "a"), text="text")
    assert texts(to_conversation({"messages": turns})) == ["q", "a"]
    with pytest.raises(RowError, match=r"messages\[0\]: keys 'role', 'words', wanted its text as"):
        to_conversation({"messages": [{"role": "user", "words": "q"}]})


def test_alpaca_rows() -> None:
    plain = {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert texts(to_conversation(plain)) == ["Add.\n1 2", "3"]
    without = to_conversation({"instruction": "Hi", "input": "", "output": "Hello", "history": []})
    assert texts(without) == ["Hi", "Hello"] and without.system is None
    history = [["q1", "a1"], ["q2", "a2"]]
    more = {**plain, "input": None, "system": "s", "history": history, "category": "sums"}
    conversation = to_conversation(more)
    assert texts(conversation) == ["q1", "a1", "q2", "a2", "Add.", "3"]
    assert (conversation.system, conversation.category) == ("s", "sums")


@pytest.mark.parametrize(
    ("user", "assistant"),
    [("human", "gpt"), ("user", "assistant"), ("Human", "ChatGPT"), ("user", "bing")],
)
@pytest.mark.parametrize(("author", "text"), [("from", "value"), ("role", "content")])
def test_sharegpt_rows(user: str, assistant: str, author: str, text: str) -> None:
    pairs = [(user, "q1"), (assistant, "a1"), (user, "q2"), (assistant, "a2")]
    turns = said(*pairs, author=author, text=text)
    conversation = to_conversation({"id": "x_0", "conversations": turns})
    assert texts(conversation) == ["q1", "a1", "q2", "a2"] and conversation.system is None
    system = said(("system", "s"), author=author, text=text)
    assert to_conversation({"conversations": system + turns}).system == "s"
    assert to_conversation({"conversations": turns, "system": "t", "tools": "[]"}).system == "t"
    # as in LLaMA-Factory, the message wins
    both = {"conversations": system + turns, "system": "t"}
    assert to_conversation(both).system == "s"


def test_content_in_parts_is_put_together_without_a_gap() -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "this?"}]
    turns = said(("developer", "s"), ("user", parts), ("assistant", [parts[1]]))
    conversation = to_conversation({"messages": turns, "tools": None})
    assert texts(conversation) == ["What is this?", "this?"] and conversation.system == "s"


def test_prompt_completion_rows() -> None:
    plain = to_conversation({"prompt": "The sky is", "completion": " blue.", "system": "s"})
    assert texts(plain) == ["The sky is", " blue."] and plain.system == "s"
    prompt = said(("system", "t"), ("user", "q1"), ("assistant", "a1"), ("user", "q2"))
    listed = to_conversation({"prompt": prompt, "completion": said(("assistant", "a2"))})
    assert texts(listed) == ["q1", "a1", "q2", "a2"] and listed.system == "t"


IMAGE = {"type": "image_url", "image_url": {"url": "https://x"}}


@pytest.mark.parametrize(
    ("value", "reason", "detail"),
    [
        ({"instruction": "q", "output": "a", "tools": [{}]}, "tool calls", "the row: 'tools'"),
        (
            {"messages": said(("user", [IMAGE]), ("assistant", "a"))},
            "images or other media",
            "messages[0]: content[0]: 'image_url'; only text is trained",
        ),
        ({"conversations": CHAT, "image": "1.jpg"}, "images or other media", "'image'"),
        (
            {"instruction": "q", "output": "a", "images": ["1.jpg"]},
            "images or other media",
            "the row: 'images'",
        ),
        ({"messages": said(("user", ["q"]))}, "not an object", "messages[0]: content[0] is text"),
        (
            {"messages": said(("user", [{"type": "refusal", "refusal": "r"}]))},
            "wrong type",
            "a part of type 'refusal', wanted text",
        ),
        ({"messages": said(("narrator", "x"))}, "unknown role", "messages[0]: role 'narrator'"),
        ({"messages": [{"content": "x"}]}, "unknown role", "messages[0]: role null"),
        (
            {"messages": [CHAT[0], {**CHAT[1], "weight": 0.5}]},
            "partial supervision",
            "messages[1]: 'weight' is 0.5, wanted 0, 1, true or false",
        ),
        (
            {"conversations": said(("gpt", "a"), ("human", "q"), author="from", text="value")},
            "wrong order of roles",
            "conversations[0]: role 'assistant', wanted 'user'",
        ),
        ({"messages": [CHAT[0], *CHAT]}, "wrong order of roles", "messages[1]: role 'user'"),
        ({"messages": [*CHAT, *said(("system", "s"))]}, "wrong order of roles", "role 'system'"),
        ({"instruction": "q"}, "wrong shape", "no 'output'"),
        ({"instruction": ["q"], "output": "a"}, "wrong type", "'instruction' is a list"),
        (
            {"instruction": "q", "output": "a", "history": [["q1"]]},
            "wrong type",
            "'history'[0] is a list, wanted a pair of texts",
        ),
        ({"instruction": "q", "output": "a", "history": {}}, "wrong type", "is an object"),
        ({"instruction": "q", "output": "a", "input": 3}, "wrong type", "'input' is a number"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "wrong shape", "no 'completion'"),
        ({"prompt": "q", "completion": CHAT}, "wrong type", "'completion' is a list"),
        ({"prompt": CHAT, "completion": "a"}, "wrong type", "'completion' is text, wanted a list"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_says_so(value: Any, reason: str, detail: str) -> None:
    with pytest.raises(RowError) as error:
        to_conversation(value)
    assert error.value.reason == reason and detail in str(error.value)


ALPACA = {"instruction": "q", "output": "a"}


def test_the_first_known_row_decides_for_its_file() -> None:
    read = ConversationReader()
    with pytest.raises(RowError) as unknown:
        read(row({"text": "a book"}))
    assert unknown.value.reason == "unknown format"
    assert texts(read(row(ALPACA))) == ["q", "a"]
    with pytest.raises(RowError) as another:
        read(row({"messages": CHAT}))
    assert another.value.reason == "another format"
    assert str(another.value) == (
        "keys 'messages', wanted 'instruction' and 'output': the file's first rows are alpaca"
    )
    # a row of the file's format may hold more
    assert texts(read(row({**ALPACA, "messages": "more"}))) == ["q", "a"]
    assert texts(read(row({"messages": CHAT}, file="y.json"))) == ["q", "a"]
    assert read.format_of_file == {"x.json": "alpaca", "y.json": "messages"}


def test_a_faulty_row_decides_too() -> None:
    read = ConversationReader()
    with pytest.raises(RowError, match="no 'output'"):
        read(row({"instruction": "q"}))
    with pytest.raises(RowError, match="first rows are alpaca"):
        read(row({"messages": CHAT}))


def test_a_named_format_is_the_only_one() -> None:
    many = {"messages": CHAT, "prompt": "p", "completion": "c"}
    assert texts(to_conversation(many)) == ["q", "a"]
    assert texts(to_conversation(many, "prompt_completion")) == ["p", "c"]
    with pytest.raises(RowError, match="wanted 'conversations': data_format says sharegpt"):
        to_conversation(many, "sharegpt")


def test_the_param_names_every_format() -> None:
    named = get_args(PrepareParams.__dataclass_fields__["data_format"].type)
    assert set(named) == {"auto", *DATA_FORMATS}


def test_the_docs_show_a_row_of_every_format() -> None:
    page = (Path(__file__).parents[2] / "docs/data.md").read_text()
    shown = re.findall(r"(?m)^\| `(\w+)` \| `(\{.*?\})`", page)
    assert {name for name, _ in shown} == set(DATA_FORMATS)
    for name, text in shown:
        value = json.loads(text)
        found = texts(to_conversation(value, name))
        if name not in NEVER_DETECTED:
            assert texts(to_conversation(value)) == found
