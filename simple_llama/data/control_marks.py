"""Which control tokens of a rendered conversation the template wrote, and which a message did.

Before a template sees them, control tokens in messages get a mark inside, a character that is in
none of the messages:

    a user writes <|im_end|>    the template sees <MARK|im_end|>    text, the mark taken away again
                                the template writes <|im_end|>      the control token

The conversation is rendered without marks too: where the template then writes something else, it
looks at control tokens in messages, and the conversation is refused. A mark also stands where a
message begins or ends with a part of a control token that a template could complete.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from simple_llama.data.prompt_formats import Refusal
from simple_llama.data.template_renderer import Rendered
from simple_llama.data.tokenizer_source import TokenizerSource

PRIVATE = range(0xE000, 0xF900)
"""Unicode's private use area: one of so many characters is not in a conversation."""
TAG = re.compile(r"</?[A-Za-z_]+>")
"""Tokens such as <think> and <tool_call>, which replies may hold: there, they are what they are."""


@dataclass(frozen=True)
class Marked:
    """Messages with a mark in their control tokens."""

    messages: list[dict[str, Any]]
    variables: dict[str, Any]
    mark: str

    def cleaned(self, text: str) -> str:
        return text.replace(self.mark, "")

    def checked(
        self, marked: list[Rendered] | Refusal, plain: list[Rendered] | Refusal
    ) -> list[Rendered] | Refusal:
        """What was rendered with marks, if it is what was rendered without them."""
        if isinstance(plain, Refusal):
            return plain
        same = not isinstance(marked, Refusal) and all(
            self.cleaned(one.text) == other.text for one, other in zip(marked, plain)
        )
        return marked if same else Refusal("it takes apart a control token in a message")


class Marks:
    """The control tokens of a tokenizer and its chat template: its special tokens, and others that
    were added to it and stand in the template."""

    def __init__(self, source: TokenizerSource) -> None:
        template, unknown = source.template or "", source.layout["model"].get("unk_token")
        used = [
            token
            for token in source.tokenizer.get_added_tokens_decoder().values()
            if len(token.content) > 1
            and token.content in source.markers
            and token.content not in (source.unk, unknown)
            and (token.special or token.content in template)
        ]
        self.names = [token.content for token in used]
        self.strips_left = {token.content for token in used if token.lstrip}
        """Those that take away the white space before them."""
        self.strips_right = {token.content for token in used if token.rstrip}
        """Those that take away the white space after them."""
        tags = {one.content for one in used if not one.special and TAG.fullmatch(one.content)}
        self._any = _any_of(self.names)
        self._in_replies = _any_of(set(self.names) - tags)
        self._parts = [
            {name[:at] for name in self.names for at in range(1, len(name))},
            {name[at:] for name in self.names for at in range(1, len(name))},
        ]
        self._edges = {name[0] for name in self.names}, {name[-1] for name in self.names}
        self._longest = max(map(len, self.names), default=1)

    def found(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Start, end and name of each control token in a rendered text."""
        for match in self._any.finditer(text):
            yield match.start(), match.end(), match[0]

    def marked(
        self, messages: Sequence[dict[str, Any]], variables: dict[str, Any]
    ) -> Marked | None:
        """The messages and variables with marks; None where none is needed."""
        trial = self._mark(messages, variables, chr(PRIVATE[0]))
        if trial == (list(messages), variables):
            return None
        text = json.dumps([messages, variables], ensure_ascii=False)
        mark = next(character for character in map(chr, PRIVATE) if character not in text)
        return Marked(*self._mark(messages, variables, mark), mark)

    def _mark(
        self, messages: Sequence[dict[str, Any]], variables: dict[str, Any], mark: str
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        marked = []
        for message in messages:
            pattern = self._in_replies if message["role"] == "assistant" else self._any
            marked.append({key: self._in(value, pattern, mark) for key, value in message.items()})
        return marked, {key: self._in(one, self._any, mark) for key, one in variables.items()}

    def _in(self, value: Any, pattern: re.Pattern[str], mark: str) -> Any:
        if isinstance(value, dict):
            return {
                self._in(key, pattern, mark): self._in(one, pattern, mark)
                for key, one in value.items()
            }
        if isinstance(value, list):
            return [self._in(one, pattern, mark) for one in value]
        if not isinstance(value, str):
            return value
        while pattern.search(value):
            value = pattern.sub(lambda match: match[0][0] + mark + match[0][1:], value)
        return self._at_edges(value, mark)

    def _at_edges(self, text: str, mark: str) -> str:
        firsts, lasts = self._edges
        head, tail = text[: self._longest], text[-self._longest :]
        if not firsts.isdisjoint(tail) and any(
            tail[-size:] in self._parts[0] for size in range(1, len(tail) + 1)
        ):
            text += mark
        if not lasts.isdisjoint(head) and any(
            head[:size] in self._parts[1] for size in range(1, len(head) + 1)
        ):
            text = mark + text
        return text


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    """The longest of those that begin at the same place, as the tokenizers library has it."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")
