"""What a chat template does with a conversation, found out by letting it write some."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from simple_llama.data.control_marks import Marks
from simple_llama.data.prompt_formats import Control, Message, Refusal
from simple_llama.data.template_renderer import Job, Rendered, Renderer
from simple_llama.errors import InputError

USER, REPLY, SYSTEM = "Hello there", "Hello", "Be brief"
PROBE: list[dict[str, Any]] = [
    {"role": "user", "content": USER},
    {"role": "assistant", "content": REPLY},
    {"role": "user", "content": "And you?"},
    {"role": "assistant", "content": "Fine"},
]
THOUGHT, TOOL_NAME, ARGUMENT, RESULT = "Hmm, hello", "look_around", "kitchen", "an empty one"
TAGGED: list[dict[str, Any]] = [
    PROBE[0],
    {**PROBE[1], "content": f"<think>\n{THOUGHT}\n</think>\n\n{REPLY}"},
    *PROBE[2:],
]
THINKING: list[Message] = [PROBE[0], {**PROBE[1], "reasoning_content": THOUGHT}]
TOOL = {
    "type": "function",
    "function": {
        "name": TOOL_NAME,
        "description": "Looks.",
        "parameters": {
            "type": "object",
            "properties": {"room": {"type": "string", "description": "Where."}},
            "required": ["room"],
        },
    },
}
CALLING: list[Message] = [
    PROBE[0],
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "call12345",
                "type": "function",
                "function": {"name": TOOL_NAME, "arguments": {"room": ARGUMENT}},
            }
        ],
    },
    {"role": "tool", "content": RESULT, "tool_call_id": "call12345", "name": TOOL_NAME},
]
SHOWN = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name")
"""What a template sees of a message."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """Of a chat template."""

    tokens: list[Control]
    """The control tokens of a plain conversation, in its order."""
    stop: Control
    """The one that ends its replies."""
    ends_in_space: bool
    """Whether the inference prompt ends in white space, which swallows that of a reply."""
    shows_system: bool
    shows_thoughts: bool
    shows_calls: bool
    """And tools, and what these return."""
    keeps_tags: bool
    """Whether thoughts in the text of a reply stay there, be it between tags."""
    rewrites: bool
    """Whether an earlier reply is written in other words than it was given in."""

    def notes(self) -> list[str]:
        """What a user should know."""
        notes = {
            "it shows no system prompt, which stands before the first message": self.shows_system,
            "it shows no tool calls": self.shows_calls,
            "it shows no thoughts": self.shows_thoughts,
            "it leaves out what a reply's text has between <think> tags": self.keeps_tags,
            "it writes earlier replies in other words, so each is an example of its own": (
                not self.rewrites
            ),
        }
        return [note for note, usual in notes.items() if not usual]


def traits_of(renderer: Renderer, marks: Marks) -> Traits:
    """Raises InputError where a template is none that can be trained with."""
    jobs = [
        Job(messages=PROBE, cuts=[(1, True), (2, False), (4, False)]),
        Job(messages=[{"role": "system", "content": SYSTEM}, *PROBE], cuts=[(2, True)]),
        Job(messages=TAGGED, cuts=[(2, False), (4, False)]),
        Job(messages=seen(THINKING), cuts=[(2, False)]),
        Job(messages=seen(CALLING), cuts=[(1, True), (3, True)], variables={"tools": [TOOL]}),
    ]
    rendered = renderer.render(jobs)
    plain, system, tagged, thinking, calling = rendered
    if isinstance(plain, Refusal):
        given = isinstance(system, Refusal)
        without = "any chat" if given else "a chat without a system message"
        raise _unfit(renderer, f"refuses {without}: {plain.reason}")
    if rendered != Renderer(renderer.path, renderer.template, renderer.variables).render(jobs):
        raise _unfit(renderer, "writes other text on each call")
    prompt, one, _ = (cut.text for cut in plain)
    if USER not in prompt or not one.startswith(prompt) or REPLY not in one[len(prompt) :]:
        raise _unfit(renderer, "does not begin a reply where its prompt for one ends")
    said = one.rindex(REPLY)
    controls = [(start, Control(name)) for start, _, name in marks.found(one)]
    ends = [name for start, name in controls if start > said]
    if not ends:
        raise _unfit(renderer, "ends replies with no control token")
    tail = prompt[max((end for _, end, _ in marks.found(prompt)), default=0) :]
    asked, called = ("", "") if isinstance(calling, Refusal) else (cut.text for cut in calling)
    return Traits(
        tokens=list(dict.fromkeys(name for _, name in controls)),
        stop=ends[0],
        ends_in_space=tail != tail.rstrip(),
        shows_system=not isinstance(system, Refusal) and SYSTEM in system[0].text,
        shows_thoughts=not isinstance(thinking, Refusal) and THOUGHT in thinking[0].text,
        shows_calls=TOOL_NAME in asked
        and called.count(TOOL_NAME) > asked.count(TOOL_NAME)
        and ARGUMENT in called
        and RESULT in called,
        keeps_tags=isinstance(tagged, Refusal) or THOUGHT in tagged[0].text,
        rewrites=not all(
            _continues(cuts, ends[0])
            for cuts in (plain[1:], tagged)
            if not isinstance(cuts, Refusal)
        ),
    )


def _continues(cuts: Sequence[Rendered], stop: Control) -> bool:
    """Whether the second begins as the first does, up to the end of its reply."""
    first, second = (cut.text for cut in cuts)
    return second.startswith(first[: first.rindex(stop)] if stop in first else first)


def _unfit(renderer: Renderer, why: str) -> InputError:
    return InputError(f"{renderer.path}: its chat template {why}")


def seen(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """What a template sees of messages: thoughts by both names, as in `transformers`."""
    shown = [{key: message[key] for key in SHOWN if key in message} for message in messages]
    for message in shown:
        if "reasoning_content" in message:
            message["thinking"] = message["reasoning_content"]
    return shown
