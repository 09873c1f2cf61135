"""Rows → conversations: one function a format.

Here only the shape is looked at; what the texts must be stands in examples.py. The formats are
those of the field, as LLaMA-Factory, TRL, axolotl and torchtune read them:
https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md
https://huggingface.co/docs/trl/dataset_formats
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from simple_llama.data.message_lists import (
    LABELS,
    OF_LISTS,
    SYSTEM,
    Conversation,
    category_of,
    from_list,
    listed,
    system_of,
)
from simple_llama.data.messages import (
    MESSAGE_KEYS,
    TEXT_KEYS,
    UNTRAINABLE,
    Message,
    refuse_untrainable,
)
from simple_llama.data.rows import Row, RowError
from simple_llama.data.supervision import ROW_FLAGS, LeftOut, check_row
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
        category=category_of(row),
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
    return Conversation(system_of(row), _turns(pairs), category_of(row))


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
    return from_list(row, listed(row, "conversations"))


def _from_messages(row: dict[str, Any]) -> Conversation:
    """{"messages": [{"role": "system" | "user" | "assistant", "content": text}, ...]}"""
    return from_list(row, listed(row, "messages"))


def _from_prompt_completion(row: dict[str, Any]) -> Conversation:
    """{"prompt": text, "completion": text, "system"?}, or both as lists of messages"""
    for key in ("prompt", "completion"):
        if row.get(key) is None:
            hint = "; data_format: preference reads the chosen side" if "chosen" in row else ""
            raise RowError("wrong shape", f"no {key!r}{hint}")
    if isinstance(row["prompt"], list):
        return from_list(row, listed(row, "prompt") + listed(row, "completion"))
    refuse_untrainable(row, "the row")
    pair = (text_of(row, "prompt"), text_of(row, "completion"))
    return Conversation(system_of(row), _turns([pair]), category_of(row))


def _from_preference(row: dict[str, Any]) -> Conversation:
    """{"prompt"?, "chosen", "rejected"}, texts or lists of messages: the chosen side."""
    chosen = row["chosen"]
    if isinstance(chosen, list) and not isinstance(row.get("prompt"), list):
        return from_list(row, listed(row, "chosen"))
    return _from_prompt_completion({**row, "completion": chosen})


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


def _count(turns: list[str]) -> str:
    return f"{len(turns)} turn{'' if len(turns) == 1 else 's'}"
