"""A tokenizer's own chat template as a prompt format.

    render(messages[:i], add_generation_prompt)    ...<|im_start|>assistant\\n
    render(messages[: i + 1])                      ...<|im_start|>assistant\\nreply<|im_end|>\\n
                                                                             ^^^^^^^^^^^^^^^ reply i

The first must be the beginning of the second: what comes after it, up to the control token that
ends it, is the reply. Where the template has generation blocks, that part of it is supervised that
stands in them. Of several replies one is supervised only where it and what stands before it are in
the whole conversation what they were when it was given: a template may write earlier turns in other
words once another follows, without their thoughts, say.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from simple_llama.data.control_marks import Marked, Marks
from simple_llama.data.prompt_formats import Control, Message, Piece, Refusal
from simple_llama.data.template_renderer import Job, Rendered, Renderer
from simple_llama.data.tokenizer_folder import KINDS
from simple_llama.data.tokenizer_source import TokenizerSource
from simple_llama.errors import InputError

NAME = "template"
BLOCK = re.compile(r"\{%[-+]?\s*generation\b")
USER, REPLY, SYSTEM = "Hello there", "Hello", "Be brief"
PROBE: list[dict[str, str]] = [
    {"role": "user", "content": USER},
    {"role": "assistant", "content": REPLY},
    {"role": "user", "content": "And you?"},
    {"role": "assistant", "content": "Fine"},
]


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
        self._shows_system, self._strips = True, False
        self.tokens, self.stop, self.notes = self._look()
        """The control tokens of a plain conversation, the one that ends its replies, and what else
        a user should know."""

    def _look(self) -> tuple[list[Control], Control, list[str]]:
        """Find out how the template writes a plain conversation."""
        jobs = [
            Job(messages=[*PROBE], cuts=[(1, True), (2, False), (4, False)]),
            Job(messages=[{"role": "system", "content": SYSTEM}, *PROBE], cuts=[(2, True)]),
        ]
        plain, system = self._renderer.render(jobs)
        if isinstance(plain, Refusal):
            raise self._unfit(f"refuses any chat: {plain.reason}")
        if [plain, system] != Renderer(self._path, self._template, self.named).render(jobs):
            raise self._unfit("writes other text on each call")
        prompt, one, several = (rendered.text for rendered in plain)
        if USER not in prompt or not one.startswith(prompt) or REPLY not in one[len(prompt) :]:
            raise self._unfit("does not begin a reply where its prompt for one ends")
        found = list(self._marks.found(one))
        end = one.rindex(REPLY)
        ends = [Control(name) for start, _, name in found if start > end]
        if not ends:
            raise self._unfit("ends replies with no control token")
        notes = []
        if isinstance(system, Refusal) or SYSTEM not in system[0].text:
            self._shows_system = False
            notes.append("it shows no system prompt, which stands before the first message")
        last = max((end for _, end, _ in self._marks.found(prompt)), default=0)
        self._strips = prompt[last:] != prompt[last:].rstrip()
        if not several.startswith(one[: one.rindex(ends[0])]):
            notes.append("it writes earlier replies in other words: only the last one is trained")
        if "strftime_now" in self._template:
            notes.append("its date is always the same")
        tokens = dict.fromkeys(Control(name) for _, _, name in found)
        return list(tokens), ends[0], notes

    def _unfit(self, why: str) -> InputError:
        return InputError(f"{self._path}: its chat template {why}")

    def chat_template(self, system_prompt: str) -> str:
        """As it was."""
        return self._template

    def render_all(
        self,
        conversations: Sequence[Sequence[Message]],
        system_prompt: str,
        supervise: Literal["last_reply", "all_replies"],
    ) -> list[list[Piece] | Refusal]:
        """The pieces of each conversation up to its last target; none where nothing is trained."""
        given = [self._given(messages, system_prompt) for messages in conversations]
        cuts = [
            [cut for place in _trained(messages, supervise) for cut in _around(place)]
            for messages in given
        ]
        return [
            one if isinstance(one, Refusal) else self._supervised(one, mark)
            for one, mark in self._render(given, cuts)
        ]

    def prompt(self, messages: Sequence[Message], system_prompt: str) -> list[Piece] | Refusal:
        """The pieces of an inference prompt."""
        given = self._given(messages, system_prompt)
        [(one, mark)] = self._render([given], [[(len(given), True)]])
        return one if isinstance(one, Refusal) else list(self._pieces(one[0].text, [], mark))

    def texts(
        self, conversations: Sequence[Sequence[Message]]
    ) -> list[tuple[Sequence[Message], str]]:
        """Those that the template does not refuse, without a system prompt, and the text of each
        one's inference prompt."""
        bare = [[{"role": "system", "content": ""}, *messages] for messages in conversations]
        given = [self._given(messages, "") for messages in bare]
        done = self._render(given, [[(len(messages), True)] for messages in given])
        return [
            (messages, one[0].text.replace(mark, "") if mark else one[0].text)
            for messages, (one, mark) in zip(bare, done)
            if not isinstance(one, Refusal)
        ]

    def _given(self, messages: Sequence[Message], system_prompt: str) -> list[Message]:
        """What the template is told: an empty system prompt is none, and one that it does not
        show stands in the first message."""
        turns = list(messages)
        system = turns.pop(0)["content"] if turns[0]["role"] == "system" else system_prompt
        if self._strips:
            turns = [
                {**turn, "content": turn["content"].lstrip()}
                if turn["role"] == "assistant"
                else turn
                for turn in turns
            ]
        if not system:
            return turns
        if self._shows_system:
            return [{"role": "system", "content": system}, *turns]
        first = {**turns[0], "content": f"{system}\n\n{turns[0]['content']}"}
        return [first, *turns[1:]]

    def _render(
        self, given: Sequence[Sequence[Message]], cuts: Sequence[list[tuple[int, bool]]]
    ) -> list[tuple[list[Rendered] | Refusal, str]]:
        """The cuts of each, and the mark in control tokens that stand in its messages."""
        jobs: list[Job] = []
        all_marked: list[Marked | None] = []
        for messages, wanted in zip(given, cuts):
            plain = [_shown(message) for message in messages]
            jobs.append(Job(messages=plain, cuts=wanted))
            all_marked.append(marked := self._marks.marked(plain))
            if marked is not None:
                jobs.append(Job(messages=marked.messages, cuts=wanted))
        done = iter(self._renderer.render(jobs))
        found: list[tuple[list[Rendered] | Refusal, str]] = []
        for marked in all_marked:
            one = next(done)
            if marked is not None:
                one = marked.checked(next(done), one)
            found.append((one, marked.mark if marked else ""))
        return found

    def _supervised(self, cuts: Sequence[Rendered], mark: str) -> list[Piece] | Refusal:
        """cuts: for each reply that is to be trained its prompt, and what ends with it."""
        if not cuts:
            return []
        whole = cuts[-1]
        targets: list[tuple[int, int]] = []
        for prompt, reply in zip(cuts[::2], cuts[1::2]):
            span = self._reply(prompt.text, reply)
            if isinstance(span, Refusal):
                if reply is whole:
                    return span
                continue
            start, end = span
            if start < end and whole.text[:end] == reply.text[:end]:
                targets.append(span)
        end = targets[-1][1] if targets else 0
        return list(self._pieces(whole.text[:end], targets, mark))

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


def _shown(message: Message) -> dict[str, Any]:
    """What a template sees of a message."""
    return {"role": message["role"], "content": message["content"]}


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
