"""A tokenizer's own chat template as a prompt format.

    render(messages[:i], add_generation_prompt)    ...<|im_start|>assistant\\n
    render(messages[: i + 1])                      ...<|im_start|>assistant\\nreply<|im_end|>\\n
                                                                             ^^^^^^^^^^^^^^^ reply i

The first text must be a prefix of the second. The rest of the second, up to the control token that
ends it, is the reply. If the template has generation blocks, only the part of the reply inside them
is supervised.

A template may rewrite earlier turns once another turn follows, for example leave out their
reasoning. If a reply and all before it is no longer a prefix of the whole conversation, that reply
becomes an example of its own, which ends with it.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any, Literal

from simple_llama.data.control_marks import ControlTokens, MarkedMessages
from simple_llama.data.foreign_template import FIXED_DATE
from simple_llama.data.prompt_formats import (
    NO_TOOLS,
    Control,
    Message,
    Piece,
    Refusal,
    uses_tools,
)
from simple_llama.data.template_renderer import Rendered, Renderer, RenderJob
from simple_llama.data.template_traits import find_traits, template_messages
from simple_llama.data.tokenizer_folder import SPECIAL_TOKEN_KINDS
from simple_llama.data.tokenizer_source import TokenizerSource
from simple_llama.errors import InputError

TEMPLATE_FORMAT = "template"
GENERATION_BLOCK = re.compile(r"\{%[-+]?\s*generation\b")
TemplateInput = tuple[Sequence[Message], dict[str, Any]]
"""The messages that the template gets, and its other variables."""


class TemplateFormat:
    """A prompt format defined by a chat template."""

    name = TEMPLATE_FORMAT
    begin = ()

    def __init__(self, source: TokenizerSource) -> None:
        """Raises InputError where there is no template, or it cannot be used for training."""
        if source.template is None:
            raise InputError(
                f"{source.path}: no chat template beside it, wanted one for prompt_format "
                f"{TEMPLATE_FORMAT}: the folder of a tokenizer that has one"
            )
        self._path, self._template = source.template_path, source.template
        self.named = named_tokens(source)
        self.adds_bos = source.bos is not None
        self._renderer = Renderer(self._path, source.template, self.named)
        self._control_tokens = ControlTokens(source)
        self.controls = [Control(name) for name in self._control_tokens.names]
        """Tokens that are control tokens where the template writes them, and text in messages."""
        self._traits = find_traits(self._renderer, self._control_tokens)
        self.tokens, self.stop = self._traits.tokens, self._traits.stop
        self.notes = self._traits.notes()
        if "strftime_now" in source.template:
            self.notes.append(f"its date is always {date(*FIXED_DATE):%d %B %Y}")
        self.shows_calls = self._traits.shows_calls
        """Whether the template writes tools, tool calls and their results."""
        self.hidden_keys = frozenset(() if self._traits.shows_thoughts else ("reasoning_content",))
        """Keys of messages that the template does not write."""

    def chat_template(self, system_prompt: str) -> str:
        """The tokenizer's own template, unchanged."""
        return self._template

    def render_all(
        self,
        conversations: Sequence[Sequence[Message]],
        system_prompt: str,
        supervise: Literal["last_reply", "all_replies"],
    ) -> list[list[list[Piece]] | Refusal]:
        """The examples of each conversation, each cut off after its last target; a single empty
        example where nothing is trained."""
        given = [self._given(messages, system_prompt) for messages in conversations]
        prefixes = [
            [prefix for place in _trained(messages, supervise) for prefix in _around(place)]
            for messages, _ in given
        ]
        return [
            one if isinstance(one, Refusal) else self._supervised(one, mark)
            for one, mark in self._render(given, prefixes)
        ]

    def prompt(self, messages: Sequence[Message], system_prompt: str) -> list[Piece] | Refusal:
        """The pieces of an inference prompt."""
        given = self._given(messages, system_prompt)
        [(one, mark)] = self._render([given], [[(len(given[0]), True)]])
        return one if isinstance(one, Refusal) else list(self._pieces(one[0].text, [], mark))

    def prompt_texts(
        self, conversations: Sequence[Sequence[Message]]
    ) -> list[tuple[Sequence[Message], str]]:
        """(messages, text of the inference prompt) of each conversation, without a system prompt.
        Conversations that the template refuses are left out."""
        bare = [[{"role": "system", "content": ""}, *messages] for messages in conversations]
        given = [self._given(messages, "") for messages in bare]
        done = self._render(given, [[(len(messages), True)] for messages, _ in given])
        return [
            (messages, one[0].text.replace(mark, "") if mark else one[0].text)
            for messages, (one, mark) in zip(bare, done)
            if not isinstance(one, Refusal)
        ]

    def _given(self, messages: Sequence[Message], system_prompt: str) -> TemplateInput:
        """What the template gets. An empty system prompt is left out. If the template does not
        write system prompts, a system prompt is put in front of the first message."""
        turns = list(messages)
        first: Message = {"content": system_prompt}
        if turns[0]["role"] == "system":
            first = turns.pop(0)
        variables = dict(first.get("chat_template_kwargs") or {})
        if "tools" in first:
            variables["tools"] = first["tools"]
        if self._traits.ends_in_space:
            turns = [
                {**turn, "content": turn["content"].lstrip()}
                if turn["role"] == "assistant"
                else turn
                for turn in turns
            ]
        system = first["content"]
        if system and self._traits.shows_system:
            turns.insert(0, {"role": "system", "content": system})
        elif system:
            turns[0] = {**turns[0], "content": f"{system}\n\n{turns[0]['content']}"}
        return turns, variables

    def _render(
        self, given: Sequence[TemplateInput], prefixes: Sequence[list[tuple[int, bool]]]
    ) -> list[tuple[list[Rendered] | Refusal, str]]:
        """The rendered prefixes of each input, and the mark in control tokens of its messages (""
        if there are none)."""
        jobs: list[RenderJob] = []
        all_marked: list[MarkedMessages | Refusal | None] = []
        for (messages, variables), wanted in zip(given, prefixes):
            if not self.shows_calls and ("tools" in variables or any(map(uses_tools, messages))):
                all_marked.append(Refusal(NO_TOOLS))
                continue
            plain = template_messages(messages)
            jobs.append(RenderJob(messages=plain, prefixes=wanted, variables=variables))
            all_marked.append(marked := self._control_tokens.mark(plain, variables))
            if marked is not None:
                jobs.append(
                    RenderJob(messages=marked.messages, prefixes=wanted, variables=marked.variables)
                )
        done = iter(self._renderer.render(jobs))
        found: list[tuple[list[Rendered] | Refusal, str]] = []
        for one in all_marked:
            if isinstance(one, Refusal):
                found.append((one, ""))
            elif one is None:
                found.append((next(done), ""))
            else:
                unmarked = next(done)
                found.append((one.check(next(done), unmarked), one.mark))
        return found

    def _supervised(self, prefixes: Sequence[Rendered], mark: str) -> list[list[Piece]] | Refusal:
        """The examples of a conversation.

        prefixes: for each trained reply, the prefix before it and the one that ends with it."""
        whole = prefixes[-1].text if prefixes else ""
        examples: list[list[Piece]] = []
        targets: list[tuple[int, int]] = []
        for prompt, reply in zip(prefixes[::2], prefixes[1::2]):
            span = self._reply(prompt.text, reply)
            if isinstance(span, Refusal):
                return span
            start, end = span
            if whole[:end] == reply.text[:end]:
                targets += [span] if start < end else []
            elif start < end:
                examples.append(list(self._pieces(reply.text[:end], [span], mark)))
        end = targets[-1][1] if targets else 0
        if targets or not examples:
            examples.append(list(self._pieces(whole[:end], targets, mark)))
        return examples

    def _reply(self, prompt: str, reply: Rendered) -> tuple[int, int] | Refusal:
        """The span (start, end) of the text that is supervised; it is empty where the template's
        generation blocks exclude the reply."""
        text, start = reply.text, len(prompt)
        if not text.startswith(prompt):
            return Refusal("its prompt is not how the text with the reply begins")
        ends = [
            (end, name) for begin, end, name in self._control_tokens.find(text) if begin >= start
        ]
        stops = [end for end, name in ends if name == self.stop] or [end for end, _ in ends]
        if not stops:
            return Refusal("its reply ends in no control token")
        if not GENERATION_BLOCK.search(self._template):
            return start, stops[-1]
        blocks = [(a, b) for a, b in reply.blocks if b > start]
        if not blocks:
            return start, start
        if text[start : blocks[0][0]].strip():
            # the supervised text would follow a text that no inference prompt contains
            return Refusal("its generation block leaves out how the reply begins")
        return max(start, blocks[0][0]), stops[-1]

    def _pieces(self, text: str, targets: Sequence[tuple[int, int]], mark: str) -> Iterator[Piece]:
        """The text, split at control tokens and where targets begin and end."""
        borders = [*(at for span in targets for at in span), len(text) + 1]
        passed = begin = 0
        for start, end, name in [*self._control_tokens.find(text), (len(text), len(text), "")]:
            stop = start
            if name in self._control_tokens.strips_left:
                stop = begin + len(text[begin:start].rstrip())
            while begin < stop:
                while borders[passed] <= begin:
                    passed += 1
                part_end = min(stop, borders[passed])
                part = text[begin:part_end]
                yield part.replace(mark, "") if mark else part, passed % 2 == 1
                begin = part_end
            while borders[passed] <= start:
                passed += 1
            if name:
                yield Control(name), passed % 2 == 1
            begin = end
            if name in self._control_tokens.strips_right:
                begin = end + len(text[end:]) - len(text[end:].lstrip())


def _around(place: int) -> list[tuple[int, bool]]:
    """The two prefixes of a reply: the one before it, and the one that ends with it."""
    return [(place, True), (place + 1, False)]


def named_tokens(source: TokenizerSource) -> dict[str, str]:
    """The template's variables bos_token, eos_token and so on."""
    names = {f"{kind}_token": source.named(kind) for kind in SPECIAL_TOKEN_KINDS}
    return {name: token for name, token in names.items() if token is not None}


def _trained(
    messages: Sequence[Message], supervise: Literal["last_reply", "all_replies"]
) -> list[int]:
    """The indices of the replies that are trained."""
    last = len(messages) - 1
    return [
        place
        for place, message in enumerate(messages)
        if message["role"] == "assistant"
        and message.get("weight", supervise == "all_replies" or place == last)
    ]
