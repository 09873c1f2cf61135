"""A tokenizer's own chat template as a prompt format.

    render(messages[:i], add_generation_prompt)    ...<|im_start|>assistant\\n
    render(messages[: i + 1])                      ...<|im_start|>assistant\\nreply<|im_end|>\\n
                                                                             ^^^^^^^^^^^^^^^ reply i

The first must be the beginning of the second: what comes after it, up to the control token that
ends it, is the reply. Where the template has generation blocks, that part of it is supervised that
stands in them.

A template may write earlier turns in other words once another follows, without their thoughts, say.
A reply that does not stand in the whole conversation, with all before it, as it did when it was
given makes an example of its own, which ends with it.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from simple_llama.data.control_marks import Marked, Marks
from simple_llama.data.prompt_formats import (
    NO_TOOLS,
    Control,
    Message,
    Piece,
    Refusal,
    uses_tools,
)
from simple_llama.data.template_renderer import Job, Rendered, Renderer
from simple_llama.data.template_traits import seen, traits_of
from simple_llama.data.tokenizer_folder import KINDS
from simple_llama.data.tokenizer_source import TokenizerSource
from simple_llama.errors import InputError

NAME = "template"
BLOCK = re.compile(r"\{%[-+]?\s*generation\b")
Given = tuple[Sequence[Message], dict[str, Any]]
"""The messages that a template is told, and its further variables."""


class TemplateFormat:
    """A prompt format that a chat template makes."""

    name = NAME
    begin = ()

    def __init__(self, source: TokenizerSource) -> None:
        """Raises InputError where there is no template, or none that can be trained with."""
        if source.template is None:
            raise InputError(
                f"{source.path}: no chat template beside it, wanted one for prompt_format {NAME}: "
                "the folder of a tokenizer that has one"
            )
        self._path, self._template = source.template_path, source.template
        self.named = named_tokens(source)
        self.adds_bos = source.bos is not None
        self._renderer = Renderer(self._path, source.template, self.named)
        self._marks = Marks(source)
        self.controls = [Control(name) for name in self._marks.names]
        """Every token that is a control token where the template writes it, and text elsewhere."""
        self._traits = traits_of(self._renderer, self._marks)
        self.tokens, self.stop = self._traits.tokens, self._traits.stop
        self.notes = self._traits.notes()
        if "strftime_now" in source.template:
            self.notes.append("its date is always the same")
        self.calls = self._traits.shows_calls
        """Whether it shows tools, calls of them and their results."""
        self.hides = frozenset(() if self._traits.shows_thoughts else ("reasoning_content",))
        """What messages may say and it does not show."""

    def chat_template(self, system_prompt: str) -> str:
        """As it was."""
        return self._template

    def render_all(
        self,
        conversations: Sequence[Sequence[Message]],
        system_prompt: str,
        supervise: Literal["last_reply", "all_replies"],
    ) -> list[list[list[Piece]] | Refusal]:
        """The examples of each conversation, each up to its last target; an empty one where
        nothing is trained."""
        given = [self._given(messages, system_prompt) for messages in conversations]
        cuts = [
            [cut for place in _trained(messages, supervise) for cut in _around(place)]
            for messages, _ in given
        ]
        return [
            one if isinstance(one, Refusal) else self._supervised(one, mark)
            for one, mark in self._render(given, cuts)
        ]

    def prompt(self, messages: Sequence[Message], system_prompt: str) -> list[Piece] | Refusal:
        """The pieces of an inference prompt."""
        given = self._given(messages, system_prompt)
        [(one, mark)] = self._render([given], [[(len(given[0]), True)]])
        return one if isinstance(one, Refusal) else list(self._pieces(one[0].text, [], mark))

    def texts(
        self, conversations: Sequence[Sequence[Message]]
    ) -> list[tuple[Sequence[Message], str]]:
        """Those that the template does not refuse, without a system prompt, and the text of each
        one's inference prompt."""
        bare = [[{"role": "system", "content": ""}, *messages] for messages in conversations]
        given = [self._given(messages, "") for messages in bare]
        done = self._render(given, [[(len(messages), True)] for messages, _ in given])
        return [
            (messages, one[0].text.replace(mark, "") if mark else one[0].text)
            for messages, (one, mark) in zip(bare, done)
            if not isinstance(one, Refusal)
        ]

    def _given(self, messages: Sequence[Message], system_prompt: str) -> Given:
        """What the template is told: an empty system prompt is none, and one that it does not
        show stands in the first message."""
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
        self, given: Sequence[Given], cuts: Sequence[list[tuple[int, bool]]]
    ) -> list[tuple[list[Rendered] | Refusal, str]]:
        """The cuts of each, and the mark in control tokens that stand in its messages."""
        jobs: list[Job] = []
        all_marked: list[Marked | Refusal | None] = []
        for (messages, variables), wanted in zip(given, cuts):
            if not self.calls and ("tools" in variables or any(map(uses_tools, messages))):
                all_marked.append(Refusal(NO_TOOLS))
                continue
            plain = seen(messages)
            jobs.append(Job(messages=plain, cuts=wanted, variables=variables))
            all_marked.append(marked := self._marks.marked(plain, variables))
            if marked is not None:
                jobs.append(Job(messages=marked.messages, cuts=wanted, variables=marked.variables))
        done = iter(self._renderer.render(jobs))
        found: list[tuple[list[Rendered] | Refusal, str]] = []
        for one in all_marked:
            if isinstance(one, Refusal):
                found.append((one, ""))
            elif one is None:
                found.append((next(done), ""))
            else:
                unmarked = next(done)
                found.append((one.checked(next(done), unmarked), one.mark))
        return found

    def _supervised(self, cuts: Sequence[Rendered], mark: str) -> list[list[Piece]] | Refusal:
        """cuts: for each reply that is to be trained its prompt, and what ends with it."""
        whole = cuts[-1].text if cuts else ""
        examples: list[list[Piece]] = []
        targets: list[tuple[int, int]] = []
        for prompt, reply in zip(cuts[::2], cuts[1::2]):
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
        """From where to where in the text the loss counts; an empty span where the template's
        generation blocks leave the reply out."""
        text, start = reply.text, len(prompt)
        if not text.startswith(prompt):
            return Refusal("its prompt is not how the text with the reply begins")
        ends = [(end, name) for begin, end, name in self._marks.found(text) if begin >= start]
        stops = [end for end, name in ends if name == self.stop] or [end for end, _ in ends]
        if not stops:
            return Refusal("its reply ends in no control token")
        if not BLOCK.search(self._template):
            return start, stops[-1]
        blocks = [(a, b) for a, b in reply.blocks if b > start]
        if not blocks:
            return start, start
        if text[start : blocks[0][0]].strip():
            # what is trained would follow a text that no prompt has
            return Refusal("its generation block leaves out how the reply begins")
        return max(start, blocks[0][0]), stops[-1]

    def _pieces(self, text: str, targets: Sequence[tuple[int, int]], mark: str) -> Iterator[Piece]:
        """The text, cut at control tokens and where targets begin and end."""
        borders = [*(at for span in targets for at in span), len(text) + 1]
        passed = begin = 0
        for start, end, name in [*self._marks.found(text), (len(text), len(text), "")]:
            stop = start
            if name in self._marks.strips_left:
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
            if name in self._marks.strips_right:
                begin = end + len(text[end:]) - len(text[end:].lstrip())


def _around(place: int) -> list[tuple[int, bool]]:
    """The cuts of a reply: what it answers, and what ends with it."""
    return [(place, True), (place + 1, False)]


def named_tokens(source: TokenizerSource) -> dict[str, str]:
    """What a template knows as bos_token and so on."""
    names = {f"{kind}_token": source.named(kind) for kind in KINDS}
    return {name: token for name, token in names.items() if token is not None}


def _trained(
    messages: Sequence[Message], supervise: Literal["last_reply", "all_replies"]
) -> list[int]:
    """The places of the replies that are trained."""
    last = len(messages) - 1
    return [
        place
        for place, message in enumerate(messages)
        if message["role"] == "assistant"
        and message.get("weight", supervise == "all_replies" or place == last)
    ]
