"""Converts rows into examples and checks their texts."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simple_llama.data.formats import ConversationReader
from simple_llama.data.message_lists import Conversation
from simple_llama.data.messages import Message
from simple_llama.data.rows import Block, Row, RowError, block_rows, read_rows
from simple_llama.data.supervision import UntrainedRow
from simple_llama.errors import InputError

FORBIDDEN_CHARACTERS = re.compile("[\0\ud800-\udfff]")
MAX_CHARACTERS = 4 * 2**20
"""Longest conversation. A longer one could have over a million tokens, and each takes the tokenizer
more than 100 bytes of memory."""
COMMON_MESSAGE_KEYS = ("role", "content", "weight")
"""Keys of a plain message. The values of other keys (reasoning, calls) hold more texts to check."""
RECORD_OVERHEAD = 40
"""Characters of JSON around each text of a record. They count towards MAX_CHARACTERS, so that the
length of a record is bounded even if it has many empty messages."""


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation that is valid for training."""

    id: str
    messages: list[Message]
    """A system message, with "tools" and "chat_template_kwargs" if there are any, then user and
    assistant in turns. After an assistant's tool calls come their results."""
    category: str | None

    @property
    def first_prompt(self) -> str:
        text: str = self.messages[1]["content"]
        return text

    def record(self) -> dict[str, Any]:
        """The example as a line of train.jsonl or val.jsonl."""
        category = {} if self.category is None else {"category": self.category}
        return {"id": self.id, **category, "messages": self.messages}


def to_example(row: Row, read: ConversationReader, system_prompt: str) -> Example:
    """The example of a row. Raises RowError with the reason why it is not valid, or UntrainedRow
    where the row's flags exclude it from training."""
    conversation = read(row)
    system = system_prompt if conversation.system is None else conversation.system
    if not system.strip():
        system = ""  # a blank system prompt means that there is none
    _check_texts(conversation, system)
    category = conversation.category.strip() if conversation.category else ""
    first: Message = {"role": "system", "content": system}
    if conversation.tools:
        first["tools"] = conversation.tools
    if conversation.variables:
        first["chat_template_kwargs"] = conversation.variables
    return Example(row.id, [first, *conversation.turns], category or None)


def read_examples(
    path: str | Path, system_prompt: str = "", left_out: list[str] | None = None
) -> Iterator[Example]:
    """The examples of train.jsonl, val.jsonl or any file of conversations, with the ids that the
    rows have under "id", if any.

    left_out: receives the ids of rows whose flags exclude them from training. Raises InputError at
    the first faulty row.
    """
    return _sound(path, read_rows(path), ConversationReader(), system_prompt, left_out)


def block_examples(block: Block) -> Iterator[Example]:
    """The examples of a block of train.jsonl or val.jsonl. Raises InputError at a faulty row."""
    read = ConversationReader()
    # set, not detected: every block is a file of its own to the reader, and records have one format
    read.format_of_file[block.path.name] = "messages"
    return _sound(block.path, block_rows(block), read, "")


def _sound(
    path: str | Path,
    rows: Iterator[Row],
    read: ConversationReader,
    system_prompt: str,
    left_out: list[str] | None = None,
) -> Iterator[Example]:
    for row in rows:
        try:
            example = to_example(row, read, system_prompt)
        except UntrainedRow:
            if left_out is not None:
                left_out.append(row.id)
            continue
        except RowError as error:
            raise InputError(f"{path}: {row.id}: {error}") from None
        given = row.value.get("id")
        usable = isinstance(given, str) and not FORBIDDEN_CHARACTERS.search(given)
        yield Example(given if usable else row.id, example.messages, example.category)


def _check_texts(conversation: Conversation, system: str) -> None:
    asked = 0
    for message in conversation.turns:
        asked += message["role"] == "user"
        may_be_empty = message["role"] == "tool" or message.get("tool_calls")
        if not may_be_empty and not message["content"].strip():
            name = "prompt" if message["role"] == "user" else "reply"
            raise RowError("empty text", f"the {name} of turn {asked} is empty")
    texts = [system, conversation.category or "", *(turn["content"] for turn in conversation.turns)]
    others = [
        conversation.tools,
        conversation.variables,
        *(
            turn[key]
            for turn in conversation.turns
            for key in turn
            if key not in COMMON_MESSAGE_KEYS
        ),
    ]
    for value in others:
        texts += _texts_in(value)
    size = sum(len(text) + RECORD_OVERHEAD for text in texts)
    if size > MAX_CHARACTERS:
        raise RowError("too long", f"{size} characters, wanted at most {MAX_CHARACTERS}")
    for text in texts:
        if ("\0" in text or not text.isascii()) and (found := FORBIDDEN_CHARACTERS.search(text)):
            name = "NUL" if found[0] == "\0" else "a lone surrogate"
            raise RowError("forbidden character", f"{name} (U+{ord(found[0]):04X}) in the text")


def _texts_in(value: Any) -> Iterator[str]:
    """All texts in a value: strings, and keys and numbers as strings."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _texts_in(key)
            yield from _texts_in(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts_in(one)
    else:
        yield str(value)
