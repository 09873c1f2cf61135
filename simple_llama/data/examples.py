"""Rows → examples: what the texts must be."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simple_llama.data.formats import ConversationReader
from simple_llama.data.message_lists import Conversation
from simple_llama.data.messages import Message
from simple_llama.data.rows import Block, Row, RowError, block_rows, read_rows
from simple_llama.data.supervision import LeftOut
from simple_llama.errors import InputError

FORBIDDEN = re.compile("[\0\ud800-\udfff]")
MAX_CHARACTERS = 4 * 2**20
"""Of a conversation. More would make over a million tokens, each of which costs the tokenizer more
than 100 bytes."""
PLAIN = ("role", "content", "weight")
"""Of a message: what any may have."""
FRAME = 40
"""Characters around a message in a record; they count, so that a record has a bounded length."""


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation that can be trained on."""

    id: str
    messages: list[Message]
    """system, with "tools" and "chat_template_kwargs" if there are any, then user and assistant in
    turns, and after an assistant's calls their results."""
    category: str | None

    @property
    def first_prompt(self) -> str:
        text: str = self.messages[1]["content"]
        return text

    def record(self) -> dict[str, Any]:
        """What stands in train.jsonl and val.jsonl."""
        category = {} if self.category is None else {"category": self.category}
        return {"id": self.id, **category, "messages": self.messages}


def to_example(row: Row, read: ConversationReader, system_prompt: str) -> Example:
    """Raises RowError with the precise reason, LeftOut where the row is not to be trained."""
    conversation = read(row)
    system = system_prompt if conversation.system is None else conversation.system
    if not system.strip():
        system = ""  # said to be none
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
    """Examples of train.jsonl, val.jsonl or any file without faults, with their own id if given.

    left_out: takes the ids of rows that say of themselves that they are not to be trained.
    Raises InputError at the first faulty row.
    """
    return _sound(path, read_rows(path), ConversationReader(), system_prompt, left_out)


def block_examples(block: Block) -> Iterator[Example]:
    """The same of a part of train.jsonl or val.jsonl."""
    read = ConversationReader()
    read.found[block.path.name] = "messages"  # as `Example.record` has them, in every block
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
        except LeftOut:
            if left_out is not None:
                left_out.append(row.id)
            continue
        except RowError as error:
            raise InputError(f"{path}: {row.id}: {error}") from None
        given = row.value.get("id")
        usable = isinstance(given, str) and not FORBIDDEN.search(given)
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
        *(turn[key] for turn in conversation.turns for key in turn if key not in PLAIN),
    ]
    for value in others:
        texts += _texts_in(value)
    size = sum(len(text) + FRAME for text in texts)
    if size > MAX_CHARACTERS:
        raise RowError("too long", f"{size} characters, wanted at most {MAX_CHARACTERS}")
    for text in texts:
        if ("\0" in text or not text.isascii()) and (found := FORBIDDEN.search(text)):
            name = "NUL" if found[0] == "\0" else "a lone surrogate"
            raise RowError("forbidden character", f"{name} (U+{ord(found[0]):04X}) in the text")


def _texts_in(value: Any) -> Iterator[str]:
    """All texts within, keys and numbers included."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _texts_in(key)
            yield from _texts_in(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts_in(one)
    else:
        yield str(value)
