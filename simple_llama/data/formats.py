"""Converts rows of every data format into conversations: one function per format.

Only keys and types are checked here; examples.py checks the texts. The formats are those that
LLaMA-Factory, TRL, axolotl and torchtune read:
https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md
https://huggingface.co/docs/trl/dataset_formats
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from simple_llama.data.message_lists import (
    CATEGORY_KEYS,
    KEYS_BESIDE_MESSAGES,
    SYSTEM_KEYS,
    Conversation,
    category_of,
    conversation_of,
    located_messages,
    system_of,
)
from simple_llama.data.messages import (
    MESSAGE_KEYS,
    TEXT_KEYS,
    UNTRAINABLE_KEYS,
    Message,
    refuse_untrainable,
)
from simple_llama.data.rows import Row, RowError
from simple_llama.data.supervision import ROW_FLAGS, UntrainedRow, check_row
from simple_llama.data.values import (
    check_object,
    keys_of,
    optional_text,
    text_of,
    texts_of,
    type_of,
)
from simple_llama.errors import printable

METADATA_KEYS = frozenset(
    (
        *("id", "_id", "idx", "index", "uuid", "guid", "key", "name", "hash", "split", "task"),
        *("conversation_id", "prompt_id", "message_id", "question_id", "row_id", "example_id"),
        *("source", "dataset", "origin", "url", "license", "timestamp", "date", "created_at"),
        *("model", "author", "lang", "language", "score", "scores", "rating", "quality", "label"),
        *("loss", "perplexity", "length", "num_turns", "turn", "tokens", "token_count", "metadata"),
        *("tags", "difficulty", "toxic", "redacted", "openai_moderation", *ROW_FLAGS),
        *UNTRAINABLE_KEYS,  # a row that has a value there was refused before
    )
)
"""Keys that tell something about a row or message and are not part of its text."""
MAX_DROPPED_KEYS, MAX_KEY_CHARACTERS, OTHER_DROPPED_KEYS = 100, 60, "(further keys)"
"""Unread keys are counted by their first MAX_KEY_CHARACTERS; after MAX_DROPPED_KEYS different ones,
all others are counted together. A file may have a new key in each row, so this bounds memory."""
NO_INPUT = "<noinput>"
"""How data sets derived from Self-Instruct write that there is no input."""


class ConversationReader:
    """Converts rows of one or several files into conversations.

    With data_format `auto`, the first row with a known key sets the format of its file; a later row
    of another format is refused.
    """

    def __init__(self, data_format: str = "auto", *, to_train: bool = True) -> None:
        """to_train: obey the flags by which rows and messages exclude themselves from training."""
        self.format_of_file: dict[str, str] = {}
        self._given = None if data_format == "auto" else data_format
        self._to_train = to_train
        self.dropped_keys: Counter[str] = Counter()
        """Key that no format reads and that is not in METADATA_KEYS → number of rows in which it
        has a value. Keys of messages begin with `messages.`."""

    def __call__(self, row: Row) -> Conversation:
        """Raises RowError, or UntrainedRow where the row's flags exclude it from training."""
        value = row.value
        if isinstance(value, RowError):
            raise value
        check_object(value, "the row")
        # null means absent: data sets of several formats that were concatenated have nulls
        key = next((key for key in FORMAT_OF_KEY if value.get(key) is not None), None)
        name = self._given or self.format_of_file.get(row.file) or FORMAT_OF_KEY.get(key or "")
        if name is None:
            raise RowError(
                "unknown format", f"{keys_of(value)}, wanted {' or '.join(DETECTED_KEYS)}"
            )
        self.format_of_file.setdefault(row.file, name)
        form = DATA_FORMATS[name]
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
            raise UntrainedRow
        for key in _dropped_keys(value, form):
            name = printable(key[:MAX_KEY_CHARACTERS])
            known = name in self.dropped_keys or len(self.dropped_keys) < MAX_DROPPED_KEYS
            self.dropped_keys[name if known else OTHER_DROPPED_KEYS] += 1
        return conversation


def _dropped_keys(row: dict[str, Any], form: "DataFormat") -> set[str]:
    """The keys under which this row has a value that no format reads."""
    dropped = {key for key in row.keys() - form.used - METADATA_KEYS if _has_value(row[key])}
    for key in form.message_lists:
        messages = row.get(key)
        for message in messages if isinstance(messages, list) else ():
            if len(message.keys() & TEXT_KEYS) > 1:  # only the first that is not null is read
                given = [name for name in TEXT_KEYS if message.get(name) is not None]
                others = (name for name in given[1:] if message[name] != message[given[0]])
                dropped |= {f"messages.{name}" for name in others if _has_value(message[name])}
            if not message.keys() <= MESSAGE_KEYS:
                dropped |= {
                    f"messages.{name}"
                    for name in message.keys() - MESSAGE_KEYS - METADATA_KEYS
                    if _has_value(message[name])
                }
    return dropped


def _has_value(value: Any) -> bool:
    """Whether a value is more than null, an empty text or an empty list."""
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

    The prompt is the instruction, followed by the input on a new line if there is one.
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
    return conversation_of(row, located_messages(row, "conversations"))


def _from_messages(row: dict[str, Any]) -> Conversation:
    """{"messages": [{"role": "system" | "user" | "assistant", "content": text}, ...]}"""
    return conversation_of(row, located_messages(row, "messages"))


def _from_prompt_completion(row: dict[str, Any]) -> Conversation:
    """{"prompt": text, "completion": text, "system"?}, or both as lists of messages"""
    for key in ("prompt", "completion"):
        if row.get(key) is None:
            hint = "; data_format: preference reads the chosen side" if "chosen" in row else ""
            raise RowError("wrong shape", f"no {key!r}{hint}")
    if isinstance(row["prompt"], list):
        return conversation_of(
            row, located_messages(row, "prompt") + located_messages(row, "completion")
        )
    refuse_untrainable(row, "the row")
    pair = (text_of(row, "prompt"), text_of(row, "completion"))
    return Conversation(system_of(row), _turns([pair]), category_of(row))


def _from_preference(row: dict[str, Any]) -> Conversation:
    """{"prompt"?, "chosen", "rejected"}, texts or lists of messages; "chosen" is the reply."""
    chosen = row["chosen"]
    if isinstance(chosen, list) and not isinstance(row.get("prompt"), list):
        return conversation_of(row, located_messages(row, "chosen"))
    return _from_prompt_completion({**row, "completion": chosen})


@dataclass(frozen=True, slots=True)
class DataFormat:
    """How rows of one format are recognised and read."""

    keys: tuple[str, ...]
    """A row of this format has at least one of these keys."""
    wanted: str
    """The keys, as an error message names them."""
    convert: Callable[[dict[str, Any]], Conversation]
    used: frozenset[str]
    """All keys that are read."""
    message_lists: tuple[str, ...] = ()
    """The keys that may hold a list of messages."""


DATA_FORMATS = {
    "messages": DataFormat(
        keys=("messages",),
        wanted="'messages'",
        convert=_from_messages,
        used=frozenset(("messages", *KEYS_BESIDE_MESSAGES)),
        message_lists=("messages",),
    ),
    "sharegpt": DataFormat(
        keys=("conversations",),
        wanted="'conversations'",
        convert=_from_sharegpt,
        used=frozenset(("conversations", *KEYS_BESIDE_MESSAGES)),
        message_lists=("conversations",),
    ),
    "simple_llama": DataFormat(
        keys=("User", "Assistant"),
        wanted="'User' and 'Assistant'",
        convert=_from_simple_llama,
        used=frozenset(("User", "Assistant", "Template", *CATEGORY_KEYS)),
    ),
    "alpaca": DataFormat(
        keys=("instruction",),
        wanted="'instruction' and 'output'",
        convert=_from_alpaca,
        used=frozenset(("instruction", "input", "output", "history", *SYSTEM_KEYS, *CATEGORY_KEYS)),
    ),
    "prompt_completion": DataFormat(
        keys=("completion", "prompt"),
        wanted="'prompt' and 'completion'",
        convert=_from_prompt_completion,
        used=frozenset(("prompt", "completion", *KEYS_BESIDE_MESSAGES)),
        message_lists=("prompt", "completion"),
    ),
    "preference": DataFormat(
        keys=("chosen",),
        wanted="'chosen'",
        convert=_from_preference,
        used=frozenset(("prompt", "chosen", "rejected", *KEYS_BESIDE_MESSAGES)),
        message_lists=("prompt", "chosen"),
    ),
}
"""In order of detection: many data sets of messages also have a 'prompt'."""
NEVER_DETECTED = ("preference",)
"""Formats that `auto` never chooses. Reading preference pairs drops the rejected half, so the user
must ask for it."""
FORMAT_OF_KEY = {
    key: name
    for name, form in DATA_FORMATS.items()
    for key in form.keys
    if name not in NEVER_DETECTED
}
DETECTED_KEYS = [form.wanted for name, form in DATA_FORMATS.items() if name not in NEVER_DETECTED]


def _turns(pairs: Iterable[tuple[str, str]]) -> list[Message]:
    turns = []
    for user, reply in pairs:
        turns.append({"role": "user", "content": user})
        turns.append({"role": "assistant", "content": reply})
    return turns


def _count(turns: list[str]) -> str:
    return f"{len(turns)} turn{'' if len(turns) == 1 else 's'}"
