"""Rows → conversations: one function a format.

Here only the shape is looked at; what the texts must be stands in examples.py. The formats are
those of the field, as LLaMA-Factory, TRL, axolotl and torchtune read them:
https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md
https://huggingface.co/docs/trl/dataset_formats
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from simple_llama.data.messages import (
    CALLS,
    MEDIA,
    MESSAGE_KEYS,
    TEXT_KEYS,
    TOOLS,
    UNTRAINABLE,
    Message,
    read_message,
    refuse_untrainable,
    role_of,
)
from simple_llama.data.rows import Row, RowError
from simple_llama.data.supervision import ROW_FLAGS, LeftOut, check_row
from simple_llama.data.tool_calls import check_plain, listed_tools, parsed, read_tools
from simple_llama.data.values import (
    check_object,
    keys_of,
    optional_text,
    text_of,
    texts_of,
    type_of,
)
from simple_llama.errors import printable

ABOUT_THE_ROW = frozenset(
    (
        *("id", "_id", "idx", "index", "uuid", "guid", "key", "name", "hash", "split", "task"),
        *("conversation_id", "prompt_id", "message_id", "question_id", "row_id", "example_id"),
        *("source", "dataset", "origin", "url", "license", "timestamp", "date", "created_at"),
        *("model", "author", "lang", "language", "score", "scores", "rating", "quality", "label"),
        *("loss", "perplexity", "length", "num_turns", "turn", "tokens", "token_count", "metadata"),
        *("tags", "difficulty", "toxic", "redacted", "openai_moderation", *ROW_FLAGS),
        *UNTRAINABLE,  # that it says nothing has been checked
    )
)
"""Keys of rows and messages that are no part of what is said in them."""
MAX_KEYS, MAX_KEY, FURTHER = 100, 60, "(further keys)"
"""How many keys that nobody reads are told apart, and by how many characters: a file may have a new
one in each row."""
NO_INPUT = "<noinput>"
"""How Self-Instruct's descendants write that there is no input."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns as their format gives them; the texts are not looked at yet."""

    system: str | None
    turns: list[Message]
    """user, assistant, user, ... and at last an assistant's; after one with calls, their results
    and another of the assistant's."""
    category: str | None
    tools: list[dict[str, Any]] = field(default_factory=list)
    """What the assistant may call."""
    variables: dict[str, Any] = field(default_factory=dict)
    """What the row says to its chat template: enable_thinking and the like."""


class ConversationReader:
    """Rows of one or several files → conversations.

    With `auto` a file's format is that of its first row that has a key of a known one; a later
    row of another format is refused.
    """

    def __init__(self, data_format: str = "auto", *, to_train: bool = True) -> None:
        """to_train: what a row says about its training is followed."""
        self.found: dict[str, str] = {}
        """File → its format."""
        self._given = None if data_format == "auto" else data_format
        self._to_train = to_train
        self.dropped_keys: Counter[str] = Counter()
        """Key that is neither used nor known to be about the row alone → rows in which it says
        something; those of messages begin with `messages.`. Beyond MAX_KEYS they are one."""

    def __call__(self, row: Row) -> Conversation:
        """Raises RowError, and LeftOut where the row says that it is not to be trained."""
        value = row.value
        if isinstance(value, RowError):
            raise value
        check_object(value, "the row")
        # null is absent: what concatenated data sets of several formats look like
        key = next((key for key in FORMAT_OF_KEY if value.get(key) is not None), None)
        name = self._given or self.found.get(row.file) or FORMAT_OF_KEY.get(key or "")
        if name is None:
            raise RowError("unknown format", f"{keys_of(value)}, wanted {' or '.join(WANTED)}")
        self.found.setdefault(row.file, name)
        form = FORMATS[name]
        if not any(value.get(key) is not None for key in form.keys):
            by = "data_format says" if self._given else "the file's first rows are"
            detail = f"{keys_of(value)}, wanted {form.wanted}: {by} {name}"
            raise RowError("another format", detail)
        if not self._to_train:
            return form.convert(value)
        check_row(value)
        conversation = form.convert(value)
        replies = (turn for turn in conversation.turns if turn["role"] == "assistant")
        if all(reply.get("weight") == 0 for reply in replies):
            raise LeftOut
        for key in _dropped_keys(value, form):
            name = printable(key[:MAX_KEY])
            known = name in self.dropped_keys or len(self.dropped_keys) < MAX_KEYS
            self.dropped_keys[name if known else FURTHER] += 1
        return conversation


def _dropped_keys(row: dict[str, Any], form: "Format") -> set[str]:
    """What a row of this format says and nobody reads."""
    dropped = {key for key in row.keys() - form.used - ABOUT_THE_ROW if _says(row[key])}
    for key in form.message_lists:
        messages = row.get(key)
        for message in messages if isinstance(messages, list) else ():
            if len(message.keys() & TEXT_KEYS) > 1:  # the first that is not null is read
                given = [name for name in TEXT_KEYS if message.get(name) is not None]
                others = (name for name in given[1:] if message[name] != message[given[0]])
                dropped |= {f"messages.{name}" for name in others if _says(message[name])}
            if not message.keys() <= MESSAGE_KEYS:
                dropped |= {
                    f"messages.{name}"
                    for name in message.keys() - MESSAGE_KEYS - ABOUT_THE_ROW
                    if _says(message[name])
                }
    return dropped


def _says(value: Any) -> bool:
    """Whether there is something in it: not null, empty or, as a text, an empty list."""
    return value not in (None, "", "[]", [], {})


def _from_simple_llama(row: dict[str, Any]) -> Conversation:
    """{"Template": [system prompt or CUSTOM], "User": [...], "Assistant": [...], "Category"?}"""
    users, replies = texts_of(row, "User"), texts_of(row, "Assistant")
    if len(users) != len(replies):
        detail = f"'User' has {_count(users)}, 'Assistant' {len(replies)}"
        raise RowError("turns do not pair up", detail)
    if not users:
        raise RowError("no turns", "'User' and 'Assistant' are empty")
    systems = [] if row.get("Template") is None else texts_of(row, "Template")
    if len(systems) > 1:
        raise RowError("wrong shape", f"'Template' has {len(systems)} system prompts, wanted 1")
    return Conversation(
        system=None if systems in ([], ["CUSTOM"]) else systems[0],
        turns=_turns(zip(users, replies)),
        category=_category(row),
    )


def _from_alpaca(row: dict[str, Any]) -> Conversation:
    """{"instruction": text, "input"?: text, "output": text, "system"?, "history"?: [[q, a], ...]}

    The prompt is the instruction and, where there is one, the input on a new line.
    """
    refuse_untrainable(row, "the row")
    instruction, reply = text_of(row, "instruction"), text_of(row, "output")
    more = optional_text(row, "input") or ""
    if more.strip().lower() == NO_INPUT:
        more = ""
    pairs = _history(row)
    pairs.append(("\n".join(part for part in (instruction, more) if part), reply))
    return Conversation(_system(row), _turns(pairs), _category(row))


def _history(row: dict[str, Any]) -> list[tuple[str, str]]:
    history = row.get("history")
    if history is None:
        return []
    if not isinstance(history, list):
        raise RowError("wrong type", f"'history' is {type_of(history)}, wanted a list of pairs")
    pairs = []
    for index, pair in enumerate(history):
        match pair:
            case [str(prompt), str(reply)]:
                pairs.append((prompt, reply))
            case _:
                detail = f"'history'[{index}] is {type_of(pair)}, wanted a pair of texts"
                raise RowError("wrong type", detail)
    return pairs


def _from_sharegpt(row: dict[str, Any]) -> Conversation:
    """{"conversations": [{"from": "human" | "gpt" | ..., "value": text}, ...], "system"?}"""
    return _from_list(row, _listed(row, "conversations"))


def _from_messages(row: dict[str, Any]) -> Conversation:
    """{"messages": [{"role": "system" | "user" | "assistant", "content": text}, ...]}"""
    return _from_list(row, _listed(row, "messages"))


def _from_prompt_completion(row: dict[str, Any]) -> Conversation:
    """{"prompt": text, "completion": text, "system"?}, or both as lists of messages"""
    for key in ("prompt", "completion"):
        if row.get(key) is None:
            hint = "; data_format: preference reads the chosen side" if "chosen" in row else ""
            raise RowError("wrong shape", f"no {key!r}{hint}")
    if isinstance(row["prompt"], list):
        return _from_list(row, _listed(row, "prompt") + _listed(row, "completion"))
    refuse_untrainable(row, "the row")
    pair = (text_of(row, "prompt"), text_of(row, "completion"))
    return Conversation(_system(row), _turns([pair]), _category(row))


def _from_preference(row: dict[str, Any]) -> Conversation:
    """{"prompt"?, "chosen", "rejected"}, texts or lists of messages: the chosen side."""
    chosen = row["chosen"]
    if isinstance(chosen, list) and not isinstance(row.get("prompt"), list):
        return _from_list(row, _listed(row, "chosen"))
    return _from_prompt_completion({**row, "completion": chosen})


def _listed(row: dict[str, Any], key: str) -> list[tuple[str, Any]]:
    """Messages, each with the name of its place."""
    messages = row[key]
    if not isinstance(messages, list):
        raise RowError("wrong type", f"{key!r} is {type_of(messages)}, wanted a list")
    return [(f"{key}[{index}]", message) for index, message in enumerate(messages)]


def _from_list(row: dict[str, Any], messages: list[tuple[str, Any]]) -> Conversation:
    """Messages in order, a system prompt first or under 'system'; that of a message wins."""
    refuse_untrainable(row, "the row", (*CALLS, *MEDIA))
    system, variables, tools = _system(row), row.get(VARIABLES), _tools(row)
    roles = [role_of(message, where) for where, message in messages]
    if roles[:1] == ["system"]:
        (where, first), *messages = messages
        [said] = read_message(first, where, tools=False)
        system = said["content"]
        tools = tools or read_tools(first.get("tools"), f"{where}: 'tools'")
        variables = variables or first.get(VARIABLES)
    if system and (listed := listed_tools(system, "the system prompt: <tools>")):
        # it says how to call them, which the chat template does in its own words
        system, tools = "", tools or listed
    turns: list[Message] = []
    for where, message in messages:
        for said in read_message(message, where, tools=bool(tools) or "tool" in roles):
            wanted = _next_roles(turns)
            if said["role"] not in wanted:
                detail = f"{where}: role {said['role']!r}, wanted {' or '.join(map(repr, wanted))}"
                raise RowError("wrong order of roles", detail)
            turns.append(said)
    if not turns:
        raise RowError("no turns", "the list of messages holds no user turn")
    if turns[-1]["role"] != "assistant":
        raise RowError("turns do not pair up", "the last message is not the assistant's")
    return Conversation(system, turns, _category(row), tools, _variables(variables))


def _next_roles(turns: list[Message]) -> tuple[str, ...]:
    """Who may speak next."""
    if not turns:
        return ("user",)
    last = turns[-1]
    if last["role"] == "tool":
        return ("assistant", "tool")
    if last["role"] == "user":
        return ("assistant",)
    return ("tool",) if last.get("tool_calls") else ("user",)


def _tools(row: dict[str, Any]) -> list[dict[str, Any]]:
    found = [read_tools(row.get(key), f"the row: {key!r}") for key in TOOLS]
    return found[0] or found[1]


def _variables(value: Any) -> dict[str, Any]:
    """What `apply_chat_template` takes beside the messages, as TRL reads it."""
    if isinstance(value, str):
        value = parsed(value, f"the row: {VARIABLES!r}")
    if value is None:
        return {}
    check_object(value, f"the row: {VARIABLES!r}")
    if taken := value.keys() & TAKEN:
        detail = f"the row: {VARIABLES!r}: {', '.join(sorted(taken))} cannot be set there"
        raise RowError("wrong shape", detail)
    check_plain(value, f"the row: {VARIABLES!r}")
    return {key: one for key, one in value.items() if one is not None}


@dataclass(frozen=True, slots=True)
class Format:
    """How one format is told from the others, and read."""

    keys: tuple[str, ...]
    """A row of this format has at least one of them."""
    wanted: str
    convert: Callable[[dict[str, Any]], Conversation]
    used: frozenset[str]
    """All the keys that are read."""
    message_lists: tuple[str, ...] = ()
    """Those under which messages may stand."""


LABELS = ("category", "Category")
SYSTEM = ("system", "system_prompt")
VARIABLES = "chat_template_kwargs"
TAKEN = {"messages", "tools", "documents", "add_generation_prompt"}
OF_LISTS = (*SYSTEM, *LABELS, *TOOLS, VARIABLES)
"""Keys that stand beside lists of messages."""
FORMATS = {
    "messages": Format(
        keys=("messages",),
        wanted="'messages'",
        convert=_from_messages,
        used=frozenset(("messages", *OF_LISTS)),
        message_lists=("messages",),
    ),
    "sharegpt": Format(
        keys=("conversations",),
        wanted="'conversations'",
        convert=_from_sharegpt,
        used=frozenset(("conversations", *OF_LISTS)),
        message_lists=("conversations",),
    ),
    "simple_llama": Format(
        keys=("User", "Assistant"),
        wanted="'User' and 'Assistant'",
        convert=_from_simple_llama,
        used=frozenset(("User", "Assistant", "Template", *LABELS)),
    ),
    "alpaca": Format(
        keys=("instruction",),
        wanted="'instruction' and 'output'",
        convert=_from_alpaca,
        used=frozenset(("instruction", "input", "output", "history", *SYSTEM, *LABELS)),
    ),
    "prompt_completion": Format(
        keys=("completion", "prompt"),
        wanted="'prompt' and 'completion'",
        convert=_from_prompt_completion,
        used=frozenset(("prompt", "completion", *OF_LISTS)),
        message_lists=("prompt", "completion"),
    ),
    "preference": Format(
        keys=("chosen",),
        wanted="'chosen'",
        convert=_from_preference,
        used=frozenset(("prompt", "chosen", "rejected", *OF_LISTS)),
        message_lists=("prompt", "chosen"),
    ),
}
"""In the order in which their keys are looked for: many sets of messages also have a 'prompt'."""
BY_NAME_ONLY = ("preference",)
"""Half of such a row is left: only where that is asked for."""
FORMAT_OF_KEY = {
    key: name for name, form in FORMATS.items() for key in form.keys if name not in BY_NAME_ONLY
}
WANTED = [form.wanted for name, form in FORMATS.items() if name not in BY_NAME_ONLY]


def _turns(pairs: Iterable[tuple[str, str]]) -> list[Message]:
    turns = []
    for user, reply in pairs:
        turns.append({"role": "user", "content": user})
        turns.append({"role": "assistant", "content": reply})
    return turns


def _system(row: dict[str, Any]) -> str | None:
    """The key beside a conversation. Tables have it in every row, and blank where there is none; a
    system message or Template that is blank says that there is to be none."""
    given = [optional_text(row, key) or "" for key in SYSTEM]
    return next((text for text in given if text.strip()), None)


def _category(row: dict[str, Any]) -> str | None:
    """A label as text: a number as it is written, of a list its labels together."""
    key = "Category" if row.get("category") is None else "category"
    value = row.get(key)
    labels = value if isinstance(value, list) else [value]
    if any(isinstance(label, dict | list) for label in labels):
        raise RowError("wrong type", f"{key!r} is {type_of(value)}, wanted text or a list of texts")
    known = [
        label if isinstance(label, str) else json.dumps(label)
        for label in labels
        if label is not None
    ]
    return ", ".join(known) if known else None


def _count(turns: list[str]) -> str:
    return f"{len(turns)} turn{'' if len(turns) == 1 else 's'}"
