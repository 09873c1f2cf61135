"""Tools, calls and thoughts: read from each form into one, written by templates that know them."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simple_llama import cli
from simple_llama.data.examples import block_examples
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.rows import RowError, read_blocks
from simple_llama.data.tokens import Tokens
from simple_llama.data.tool_calls import parse_calls, parse_reply
from simple_llama.errors import InputError
from simple_llama.evaluation.metrics import evaluate
from simple_llama.inference.chat import Conversation, _answer
from simple_llama.inference.replies import GenerationSettings, load_replier
from simple_llama.inference.requests import read_requests, read_tool_file, with_tools
from simple_llama.model.folder import load_model, save_model
from simple_llama.params.evaluate import EvaluateParams
from simple_llama.params.reading import Params
from tests.support.conversations import example, turns
from tests.support.models import random_model
from tests.support.templates import of_transformers, template_folder

FUNCTION = {
    "name": "weather",
    "description": "The weather <|im_end|>",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
TOOL = {"type": "function", "function": FUNCTION}
ARGUMENTS = {"city": "Pertola", "days": 2}
CALL = {"type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
EXPECTED = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"sky": "blue"}'},
    {"role": "assistant", "content": "Blue."},
]


def openai(arguments: Any, content: Any = None, **more: Any) -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": content, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": '{"sky": "blue"}'},
            {"role": "assistant", "content": "Blue."},
        ],
        "tools": [TOOL],
        **more,
    }


def without_ids(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    text = json.dumps(messages).replace('"id": "c1", ', "").replace(', "tool_call_id": "c1"', "")
    found: list[dict[str, Any]] = json.loads(text)
    return found


OLD: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "q"},
        {
            "role": "assistant",
            "content": None,
            "function_call": {"name": "weather", "arguments": json.dumps(ARGUMENTS)},
        },
        {"role": "function", "content": {"sky": "blue"}},
        {"role": "assistant", "content": "Blue."},
    ],
    "functions": [FUNCTION],
}
SHAREGPT: dict[str, Any] = {
    "conversations": [
        {"from": "human", "value": "q"},
        {
            "from": "function_call",
            "value": json.dumps({"name": "weather", "arguments": ARGUMENTS}),
        },
        {"from": "observation", "value": '{"sky": "blue"}'},
        {"from": "gpt", "value": "Blue."},
    ],
    "tools": json.dumps([FUNCTION]),
}
HERMES: dict[str, Any] = {
    "conversations": [
        {
            "from": "system",
            "value": f"You may call functions. <tools> [{json.dumps(TOOL)}] </tools> As JSON.",
        },
        {"from": "human", "value": "q"},
        {
            "from": "gpt",
            "value": f"<tool_call>\n{{'name': 'weather', 'arguments': {ARGUMENTS}}}\n</tool_call>",
        },
        {"from": "tool", "value": '<tool_response>\n{"sky": "blue"}\n</tool_response>'},
        {"from": "gpt", "value": "Blue."},
    ],
}


@pytest.mark.parametrize(
    "row",
    [
        openai(ARGUMENTS),
        openai(json.dumps(ARGUMENTS)),
        openai(ARGUMENTS, ""),
        OLD,
        SHAREGPT,
        HERMES,
    ],
    ids=["openai", "openai, JSON text", "openai, no content", "functions", "sharegpt", "hermes"],
)
def test_each_form_is_read_into_one(row: dict[str, Any], tmp_path: Path) -> None:
    found = example(row, "Be brief.")
    system, *others = found.messages
    listed = "You may" in json.dumps(row)
    assert system == {"role": "system", "content": "" if listed else "Be brief.", "tools": [TOOL]}
    assert without_ids(others) == EXPECTED
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(found.record()) + "\n")
    [block] = read_blocks(path, 2**20)
    assert [one.messages for one in block_examples(block)] == [found.messages], "read back"


def test_a_system_prompt_may_speak_of_other_tools() -> None:
    system = {"role": "system", "content": "Write <tools>hammers\nand nails</tools>."}
    [first, *_] = example({"messages": [system, *turns("q", "a")]}).messages
    assert first == system


def test_several_calls_and_results() -> None:
    row: dict[str, Any] = {
        "tools": [FUNCTION],
        "conversations": [
            {"from": "human", "value": "q"},
            {
                "from": "gpt",
                "value": 'Let me see.\n<tool_call>{"name": "weather"}</tool_call>\n'
                '<tool_call>{"name": "weather", "arguments": "{}"}</tool_call>',
            },
            {
                "from": "tool",
                "value": "<tool_response>\n1\n</tool_response>\n<tool_response>2</tool_response>",
            },
            {"from": "gpt", "value": "3"},
        ],
    }
    _, _, call, one, two, _ = example(row).messages
    assert call["content"] == "Let me see." and len(call["tool_calls"]) == 2
    assert [one["content"], two["content"]] == ["1", "2"]
    last = {**row, "conversations": row["conversations"][:2]}
    assert example(last).messages[-1] == call, "a row may end with a call"


@pytest.mark.parametrize(
    ("row", "reason", "said"),
    [
        (openai("{"), "tool calls", "messages[1]: 'tool_calls'[0]: arguments: no JSON: '{'"),
        (openai("[1]"), "tool calls", "arguments are a list, wanted an object"),
        (openai('{"a": 1, "a": 2}'), "tool calls", "wanted an object"),
        (openai({"x": float("nan")}), "tool calls", "nan is no number of JSON"),
        (openai(ARGUMENTS, tools="[{"), "tool calls", "the row: 'tools': no JSON"),
        (openai(ARGUMENTS, tools=[3]), "not an object", "the row: 'tools'[0] is a number"),
        (openai(ARGUMENTS, tools=[{"type": "function"}]), "tool calls", "with its 'name'"),
        (openai({"x": "\0"}), "forbidden character", "NUL"),
        (
            {"messages": [*OLD["messages"][:2], *turns("q")]},
            "wrong order of roles",
            "messages[2]: role 'user', wanted 'tool'",
        ),
        (
            {"messages": [*turns("q", "a"), {"role": "tool", "content": "3"}]},
            "wrong order of roles",
            "messages[2]: role 'tool', wanted 'user'",
        ),
        (
            {"messages": OLD["messages"][:3]},
            "turns do not pair up",
            "the last message is not the assistant's",
        ),
        (
            {"conversations": [*SHAREGPT["conversations"][:1], {"from": "function_call"}]},
            "wrong shape",
            "wanted its text",
        ),
        (
            {
                "tools": [FUNCTION],
                "messages": turns("q", '<tool_call>{"name": "f"}</tool_call> and so on'),
            },
            "tool calls",
            "text after a call",
        ),
        (
            {"messages": turns("q", "a"), "chat_template_kwargs": {"messages": []}},
            "wrong shape",
            "messages cannot be set there",
        ),
        (
            {"messages": [turns("q")[0], {**turns("q", "a")[1], "thinking": ["x"]}]},
            "wrong type",
            "its thoughts are a list, wanted text",
        ),
    ],
)
def test_what_cannot_be_read_is_named(row: dict[str, Any], reason: str, said: str) -> None:
    with pytest.raises(RowError) as error:
        example(row)
    assert error.value.reason == reason and said in str(error.value)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tools")
    return {name: template_folder(name, root / name) for name in ("qwen3", "llama3", "smollm3")}


@pytest.fixture(scope="module")
def chats(folders: dict[str, Path]) -> dict[str, ChatTokenizer]:
    return {
        name: ChatTokenizer.from_path(folder, prompt_format="auto", system_prompt="")
        for name, folder in folders.items()
    }


@pytest.mark.parametrize("name", ["qwen3", "llama3"])
@pytest.mark.usefixtures("fixed_date")
def test_transformers_makes_the_same_ids_of_tools_and_calls(
    folders: dict[str, Path], chats: dict[str, ChatTokenizer], name: str
) -> None:
    row = json.loads(json.dumps(openai(ARGUMENTS)).replace("<|im_end|>", ""))
    chat, theirs = chats[name], of_transformers(folders[name])
    messages = example(row).messages
    found = [
        (ids[:start].tolist(), ids[start:end].tolist())
        for ids, mask in chat.encode([messages], "all_replies")
        for start, end in spans(mask)
    ]
    assert len(found) == 2, "both replies are trained, the tool's result is not"
    for asked, (prompt, reply) in zip((2, 4), found):
        assert prompt == chat.prompt(messages[:asked])
        assert prompt == theirs.apply_chat_template(
            row["messages"][: asked - 1],
            tools=row["tools"],
            add_generation_prompt=True,
            return_dict=False,
        )
        whole = theirs.apply_chat_template(
            row["messages"][:asked], tools=row["tools"], return_dict=False
        )
        assert prompt + reply == whole[: len(prompt + reply)] and reply[-1] == chat.stop_id
    assert parse_calls(chat.decode(found[0][1])) == [("weather", json.dumps(ARGUMENTS))]
    assert chat.decode(found[1][1]).endswith("Blue.")
    assert "sky" in chat.decode(found[1][0])
    [(ids, mask)] = chat.encode([messages[:3]], "last_reply")
    assert [(a, ids[a:b].tolist()) for a, b in spans(mask)] == [(len(found[0][0]), found[0][1])]


def spans(mask: Any) -> list[tuple[int, int]]:
    """Where the targets begin and end."""
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)).tolist()
    return list(zip(edges[::2], edges[1::2]))


def test_thoughts_are_trained_where_the_template_shows_them(
    folders: dict[str, Path], chats: dict[str, ChatTokenizer]
) -> None:
    for key in ("reasoning_content", "thinking", "reasoning"):
        row = {"messages": [turns("q")[0], {"role": "assistant", "content": "a", key: "Hmm."}]}
        messages, chat = example(row).messages, chats["qwen3"]
        [(ids, mask)] = chat.encode([messages], "last_reply")
        assert chat.decode(ids[mask]).split() == ["<think>", "Hmm.", "</think>", "a"]
        theirs = of_transformers(folders["qwen3"])
        whole = theirs.apply_chat_template(row["messages"], return_dict=False)
        assert ids.tolist() == whole[: len(ids)] and not chat.hidden_keys(messages)
        for name in ("llama3", "smollm3"):
            assert chats[name].hidden_keys(messages) == {"reasoning_content"}
            assert "it shows no reasoning" in chats[name].description


def test_a_row_tells_its_template_whether_to_think(chats: dict[str, ChatTokenizer]) -> None:
    for name in ("qwen3", "smollm3"):
        for given in ({"enable_thinking": False}, '{"enable_thinking": false}'):
            messages = example(
                {"messages": turns("q", "a"), "chat_template_kwargs": given}
            ).messages
            [(ids, mask)] = chats[name].encode([messages], "last_reply")
            assert chats[name].decode(ids[mask]) == "a"
            asked = chats[name].decode(chats[name].prompt(messages[:-1]))
            assert asked.rstrip().endswith("<think>\n\n</think>")


def test_control_tokens_of_tools_stay_text(chats: dict[str, ChatTokenizer]) -> None:
    """In a tool's description, in arguments and in a result; in calls the tags are tokens."""
    messages = example(openai({"x<|im_end|>": "<|im_start|>"})).messages
    messages[3]["content"] = "<tool_call><|im_end|></tool_call>"
    chat = chats["qwen3"]
    _, (ids, _) = chat.encode([messages], "all_replies")
    text = chat.decode(ids)
    for part in ("The weather <|im_end|>", '{"x<|im_end|>": "<|im_start|>"}', "<tool_call><|im_"):
        assert part in text
    _, (plain, _) = chat.encode([example(openai({})).messages], "all_replies")
    control = {token for token in ids.tolist() if chat.has_control([token])}
    for token in control | set(chat.control_ids.values()):
        assert ids.tolist().count(token) == plain.tolist().count(token)


@pytest.mark.parametrize("name", ["chatml", "gemma"])
def test_a_format_that_shows_no_calls_refuses_the_row_by_name(tmp_path: Path, name: str) -> None:
    folder = template_folder("gemma" if name == "gemma" else "qwen3", tmp_path)
    chat = ChatTokenizer.from_path(
        folder, prompt_format="template" if name == "gemma" else name, system_prompt=""
    )
    batch = chat.encode_batch([example(openai({})).messages, turns("q", "a")], "last_reply")
    assert batch.refused == {0: "tool calls, which it does not show"} and batch.lengths[1] > 0
    with pytest.raises(InputError, match="tool calls, which it does not show"):
        chat.prompt(example(openai({})).messages[:-1])
    assert not chat.shows_calls


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('<tool_call>\n{"name": "f", "arguments": {"b": 1, "a": 2}}\n</tool_call>', ["f"]),
        ('<think>\n{}\n</think>\n\nSo <tool_call>{"name": "f"}</tool_call>', ["f"]),
        ('{"name": "f", "parameters": {"a": 2, "b": 1}}', ["f"]),
        (' [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]', ["f", "g"]),
        ('<tool_call>{"name": "f", "arguments": {</tool_call>', []),
        (
            "<tool_call>\n<function=f>\n<parameter=a>\n2\n</parameter>\n</function>\n</tool_call>",
            ["f"],
        ),
        ('{"name": "f"}', []),
        ("[1]", []),
        ("f(1)", []),
        ("[" * 10_000, []),
    ],
)
def test_calls_in_what_a_model_wrote(text: str, calls: list[str]) -> None:
    assert [name for name, _ in parse_calls(text)] == calls
    message = parse_reply(text)
    assert [call["function"]["name"] for call in message.get("tool_calls", [])] == calls
    if not calls:
        assert message == {"role": "assistant", "content": text}


def test_arguments_are_compared_as_values() -> None:
    tagged = "<tool_call><function=f><parameter=a>[2]</parameter><parameter=b>x y</parameter>"
    as_json = '<tool_call>{"name": "f", "arguments": {"a": [2], "b": "x y"}}</tool_call>'
    assert parse_calls(f"{tagged}</function></tool_call>") == parse_calls(as_json) != []
    one = '<tool_call>{"name": "f", "arguments": {"b": 1, "a": [2]}}</tool_call>'
    other = 'Well.\n<tool_call>\n{"arguments": {"a": [2],  "b": 1}, "name": "f"}</tool_call>'
    assert parse_calls(one) == parse_calls(other) != parse_calls(one.replace("1", "3"))


def test_tools_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([FUNCTION]))
    assert read_tool_file(str(path)) == [TOOL]
    for content, said in (("[", "not JSON"), ("[]", "no tools in it"), ('[{"x": 1}]', "'name'")):
        path.write_text(content)
        with pytest.raises(InputError, match=said):
            read_tool_file(str(path))
    rows = tmp_path / "rows.jsonl"
    asks = {"messages": OLD["messages"][:3], "functions": [FUNCTION]}
    rows.write_text(json.dumps({"messages": turns("q")}) + "\n" + json.dumps(asks))
    other = {"type": "function", "function": {"name": "other"}}
    plain, own = (with_tools(one, [other], "s") for one in read_requests(str(rows), "s"))
    assert plain.messages[0] == {"tools": [other], "role": "system", "content": "s"}
    assert own.messages[0]["tools"] == [TOOL] and own.messages[-1]["role"] == "tool"
    rows.write_text(json.dumps({"messages": OLD["messages"][:2], "functions": [FUNCTION]}))
    [with_reference] = read_requests(str(rows), "")
    assert json.loads(str(with_reference.reference)) == CALL["function"]


@pytest.fixture(scope="module")
def model(chats: dict[str, ChatTokenizer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of random weights with a template that knows tools."""
    path = tmp_path_factory.mktemp("model")
    chats["qwen3"].save(path / "tokenizer")
    save_model(
        random_model(vocab_size=chats["qwen3"].vocab_size, max_position_embeddings=900),
        path / "model",
        path / "tokenizer",
    )
    return path / "model"


CALLED = '<tool_call>\n{"name": "weather", "arguments": {"city": "Pertola"}}\n</tool_call>'


def says(chat: ChatTokenizer, *texts: str) -> Callable[..., list[list[int]]]:
    """In the place of a model."""
    left = list(texts)

    def generate(model: Any, prompts: list[list[int]], **settings: Any) -> list[list[int]]:
        return [written(chat, left.pop(0)) for _ in prompts]

    return generate


def written(chat: ChatTokenizer, text: str) -> list[int]:
    """The ids of a reply, without the token that ends it."""
    [(ids, mask)] = chat.encode([turns("q", f"<think>\n\n</think>\n\n{text}")], "last_reply")
    return ids[mask][:-1].tolist()  # type: ignore[no-any-return]


def test_generate_shows_calls(
    model: Path,
    chats: dict[str, ChatTokenizer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tools.json").write_text(json.dumps([FUNCTION]))
    said = says(chats["qwen3"], CALLED, "Blue.")
    monkeypatch.setattr("simple_llama.inference.batch.generate", said)
    command = ["simple-llama", "generate", "--model", str(model), "--device", "cpu"]
    command += ["--tools", "tools.json", "--batch-size", "1"]
    monkeypatch.setattr("sys.argv", [*command, "--prompt", "longer q", "--prompt", "q"])
    cli.main()
    one, two = map(json.loads, capsys.readouterr().out.splitlines())
    assert one["tool_calls"] == [{"name": "weather", "arguments": {"city": "Pertola"}}]
    assert CALLED in one["reply"] and "tool_calls" not in two
    monkeypatch.setattr("sys.argv", [*command, "--prompt", "q", "--prompt-format", "chatml"])
    with pytest.raises(SystemExit, match="format chatml: tool calls, which it does not show"):
        cli.main()


def test_chat_goes_on_with_the_result_of_a_call(
    model: Path, chats: dict[str, ChatTokenizer], capsys: pytest.CaptureFixture[str]
) -> None:
    replier = load_replier(str(model), "cpu")
    settings = GenerationSettings(max_tokens=4, temperature=0.0, top_p=1.0, seed=0)
    talk = Conversation("it", replier, None, settings, [TOOL])
    heard: list[list[int]] = []
    answers = [CALLED, "Blue."]

    def reply(prompt: list[int], *_: Any) -> Iterator[str]:
        heard.append(prompt)
        yield answers[len(heard) - 1]

    replier.reply = reply  # type: ignore[method-assign, assignment]
    assert _answer([talk], "/tool 3", interactive=False)
    assert "no call waits for a result" in capsys.readouterr().err
    _answer([talk], "What sky?", interactive=False)
    said = capsys.readouterr()
    assert CALLED in said.out
    assert 'calls weather {"city": "Pertola"}: /tool TEXT gives the result' in said.err
    _answer([talk], '/tool {"sky": "blue"}', interactive=False)
    assert "Blue." in capsys.readouterr().out
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Pertola"}}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "", "tools": [TOOL]},
        {"role": "user", "content": "What sky?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": '{"sky": "blue"}'},
    ]
    assert heard == [chats["qwen3"].prompt(messages[:2]), chats["qwen3"].prompt(messages)]
    talk.restart(None)
    for text in ("one " * 20, "two " * 60, "three " * 60):
        talk.add_message(text)
        talk._turns += [{"role": "assistant", "content": "", "tool_calls": [call]}]
        talk.add_message("3", "tool")
        talk._turns += [{"role": "assistant", "content": "a"}]
    assert talk._turns[0]["role"] == "user", "a turn is forgotten with its calls"


def test_evaluate_scores_a_call_by_its_name_and_arguments(
    model: Path, chats: dict[str, ChatTokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = chats["qwen3"]
    call = '<tool_call>{"arguments": {"days": 2,   "city": "Pertola"}, "name": "weather"}'
    other = call.replace("Pertola", "Lusaria")
    tags = "</tool_call>"
    row = {**openai(ARGUMENTS), "messages": openai(ARGUMENTS)["messages"][:2]}
    examples: list[list[Any]] = [example(row).messages, example(row).messages, turns("q", "Blue.")]
    tokens = Tokens.from_examples(chat.encode(examples, "last_reply"))
    said = says(chat, call + tags, other + tags, "Blue.")
    monkeypatch.setattr("simple_llama.evaluation.metrics.generate", said)
    params = dataclasses.replace(
        Params().section(EvaluateParams), device="cpu", exact_match_max_tokens=200
    )
    found = evaluate(load_model(model).eval(), tokens, chat, params)
    assert sorted(found.matches.values()) == [False, True, True]
    assert found.matches[2]
