"""Rows → examples: what the texts must be."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simple_llama.data.formats import Conversation, ConversationReader
from simple_llama.data.messages import Message
from simple_llama.data.rows import Block, Row, RowError, block_rows, read_rows
from simple_llama.data.supervision import LeftOut
from simple_llama.errors import InputError

FORBIDDEN = re.compile("[\0\ud800-\udfff]")
MAX_CHARACTERS = 4 * 2**20
"""Of a conversation. More would make over a million tokens, each of which costs the tokenizer more
than 100 bytes."""
FRAME = 40
"""Characters around a message in a record; they count, so that a record has a bounded length."""


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation that can be trained on."""

    id: str
    messages: list[Message]
    """system, then user and assistant in turns."""
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
    messages = [{"role": "system", "content": system}, *conversation.turns]
    return Example(row.id, messages, category or None)


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
    for index, message in enumerate(conversation.turns):
        if not message["content"].strip():
            raise RowError("empty text", f"the {_ordinal(index)} is empty")
    texts = [system, conversation.category or "", *(turn["content"] for turn in conversation.turns)]
    size = sum(len(text) + FRAME for text in texts)
    if size > MAX_CHARACTERS:
        raise RowError("too long", f"{size} characters, wanted at most {MAX_CHARACTERS}")
    for text in texts:
        if ("\0" in text or not text.isascii()) and (found := FORBIDDEN.search(text)):
            name = "NUL" if found[0] == "\0" else "a lone surrogate"
            raise RowError("forbidden character", f"{name} (U+{ord(found[0]):04X}) in the text")


def _ordinal(index: int) -> str:
    """What a turn is called: turn 1 has a prompt and a reply."""
    return f"{'reply' if index % 2 else 'prompt'} of turn {index // 2 + 1}"
