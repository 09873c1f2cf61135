"""Tells control tokens that a chat template writes from the same text in a message.

Before rendering, a mark is inserted into each control token in a message. The mark is a character
that occurs in no message:

    a user writes <|im_end|>    the template gets <MARK|im_end|>    text; the mark is removed again
                                the template writes <|im_end|>      a control token

The conversation is also rendered without marks. If the two results differ by more than the marks,
the template itself searches messages for control tokens, and the conversation is refused. A mark is
also put where a message begins or ends with a part of a control token, which the template could
complete.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from simple_llama.data.prompt_formats import Refusal
from simple_llama.data.template_renderer import Rendered
from simple_llama.data.tokenizer_source import TokenizerSource

PRIVATE_USE_AREA = range(0xE000, 0xF900)
"""Unicode's private use area: there is always one among these characters that no message has."""
TAG_TOKEN = re.compile(r"</?[A-Za-z_]+>")
"""Tokens such as <think> and <tool_call>. In replies they are not marked: there they are meant as
the tokens that they are."""


@dataclass(frozen=True)
class MarkedMessages:
    """Messages and variables of a template with a mark in each control token."""

    messages: list[dict[str, Any]]
    variables: dict[str, Any]
    mark: str

    def without_marks(self, text: str) -> str:
        return text.replace(self.mark, "")

    def check(
        self, marked: list[Rendered] | Refusal, plain: list[Rendered] | Refusal
    ) -> list[Rendered] | Refusal:
        """`marked`, if it equals `plain` but for the marks; otherwise a Refusal."""
        if isinstance(plain, Refusal):
            return plain
        same = not isinstance(marked, Refusal) and all(
            self.without_marks(one.text) == other.text for one, other in zip(marked, plain)
        )
        return marked if same else Refusal("it takes apart a control token in a message")


class ControlTokens:
    """The control tokens of a tokenizer and its chat template: its special tokens, and those other
    added tokens that the template contains."""

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
        """Tokens before which the tokenizer removes white space."""
        self.strips_right = {token.content for token in used if token.rstrip}
        """Tokens after which the tokenizer removes white space."""
        tags = {one.content for one in used if not one.special and TAG_TOKEN.fullmatch(one.content)}
        self._any = _any_of(self.names)
        self._in_replies = _any_of(set(self.names) - tags)
        self._parts = [
            {name[:at] for name in self.names for at in range(1, len(name))},
            {name[at:] for name in self.names for at in range(1, len(name))},
        ]
        self._edges = {name[0] for name in self.names}, {name[-1] for name in self.names}
        self._longest = max(map(len, self.names), default=1)

    def find(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Start, end and name of each control token in a rendered text."""
        for match in self._any.finditer(text):
            yield match.start(), match.end(), match[0]

    def mark(
        self, messages: Sequence[dict[str, Any]], variables: dict[str, Any]
    ) -> MarkedMessages | None:
        """The messages and variables with marks; None where no mark is needed."""
        trial = self._mark(messages, variables, chr(PRIVATE_USE_AREA[0]))
        if trial == (list(messages), variables):
            return None
        text = json.dumps([messages, variables], ensure_ascii=False)
        mark = next(character for character in map(chr, PRIVATE_USE_AREA) if character not in text)
        return MarkedMessages(*self._mark(messages, variables, mark), mark)

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
    """Matches any of the names; at one position the longest wins, as in the tokenizers library."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")
