"""Finds out what a chat template does with a conversation, by rendering probes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from simple_llama.data.control_marks import ControlTokens
from simple_llama.data.prompt_formats import Control, Message, Refusal
from simple_llama.data.template_renderer import Rendered, Renderer, RenderJob
from simple_llama.errors import InputError

USER, REPLY, SYSTEM = "Hello there", "Hello", "Be brief"
PLAIN_PROBE: list[dict[str, Any]] = [
    {"role": "user", "content": USER},
    {"role": "assistant", "content": REPLY},
    {"role": "user", "content": "And you?"},
    {"role": "assistant", "content": "Fine"},
]
THOUGHT, TOOL_NAME, ARGUMENT, RESULT = "Hmm, hello", "look_around", "kitchen", "an empty one"
THINK_TAG_PROBE: list[dict[str, Any]] = [
    PLAIN_PROBE[0],
    {**PLAIN_PROBE[1], "content": f"<think>\n{THOUGHT}\n</think>\n\n{REPLY}"},
    *PLAIN_PROBE[2:],
]
REASONING_PROBE: list[Message] = [PLAIN_PROBE[0], {**PLAIN_PROBE[1], "reasoning_content": THOUGHT}]
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
TOOL_CALL_PROBE: list[Message] = [
    PLAIN_PROBE[0],
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
TEMPLATE_MESSAGE_KEYS = (
    "role",
    "content",
    "reasoning_content",
    "tool_calls",
    "tool_call_id",
    "name",
)
"""Keys of a message that a template gets."""


@dataclass(frozen=True, kw_only=True)
class TemplateTraits:
    """What a chat template writes."""

    tokens: list[Control]
    """The control tokens of a plain conversation, in order of their first occurrence."""
    stop: Control
    """The control token that ends a reply."""
    ends_in_space: bool
    """Whether the inference prompt ends in white space. White space at the start of a reply would
    merge with it into one token, so it is removed."""
    shows_system: bool
    shows_thoughts: bool
    """Whether it writes the key reasoning_content."""
    shows_calls: bool
    """Whether it writes tools, tool calls and their results."""
    keeps_tags: bool
    """Whether it writes reasoning that stands between tags in a reply's text."""
    rewrites: bool
    """Whether it writes an earlier reply differently once another turn follows."""

    def notes(self) -> list[str]:
        """Lines for the user about what the template does not write."""
        notes = {
            "it shows no system prompt, so it is put before the first message": self.shows_system,
            "it shows no tool calls": self.shows_calls,
            "it shows no reasoning": self.shows_thoughts,
            "it leaves out text between <think> tags in a reply": self.keeps_tags,
            "it rewrites earlier replies, so each reply is an example of its own": (
                not self.rewrites
            ),
        }
        return [note for note, usual in notes.items() if not usual]


def find_traits(renderer: Renderer, control_tokens: ControlTokens) -> TemplateTraits:
    """The traits of a template. Raises InputError where it cannot be used for training."""
    jobs = [
        RenderJob(messages=PLAIN_PROBE, prefixes=[(1, True), (2, False), (4, False)]),
        RenderJob(
            messages=[{"role": "system", "content": SYSTEM}, *PLAIN_PROBE], prefixes=[(2, True)]
        ),
        RenderJob(messages=THINK_TAG_PROBE, prefixes=[(2, False), (4, False)]),
        RenderJob(messages=template_messages(REASONING_PROBE), prefixes=[(2, False)]),
        RenderJob(
            messages=template_messages(TOOL_CALL_PROBE),
            prefixes=[(1, True), (3, True)],
            variables={"tools": [TOOL]},
        ),
    ]
    rendered = renderer.render(jobs)
    plain, system, tagged, thinking, calling = rendered
    if isinstance(plain, Refusal):
        given = isinstance(system, Refusal)
        without = "any chat" if given else "a chat without a system message"
        raise _unfit(renderer, f"refuses {without}: {plain.reason}")
    if rendered != Renderer(renderer.path, renderer.template, renderer.variables).render(jobs):
        raise _unfit(renderer, "writes other text on each call")
    prompt, one, _ = (prefix.text for prefix in plain)
    if USER not in prompt or not one.startswith(prompt) or REPLY not in one[len(prompt) :]:
        raise _unfit(renderer, "does not begin a reply where its prompt for one ends")
    said = one.rindex(REPLY)
    controls = [(start, Control(name)) for start, _, name in control_tokens.find(one)]
    ends = [name for start, name in controls if start > said]
    if not ends:
        raise _unfit(renderer, "ends replies with no control token")
    tail = prompt[max((end for _, end, _ in control_tokens.find(prompt)), default=0) :]
    asked, called = (
        ("", "") if isinstance(calling, Refusal) else (prefix.text for prefix in calling)
    )
    return TemplateTraits(
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
            _continues(prefixes, ends[0])
            for prefixes in (plain[1:], tagged)
            if not isinstance(prefixes, Refusal)
        ),
    )


def _continues(prefixes: Sequence[Rendered], stop: Control) -> bool:
    """Whether the second text starts with the first, up to the stop token of the first's reply."""
    first, second = (prefix.text for prefix in prefixes)
    return second.startswith(first[: first.rindex(stop)] if stop in first else first)


def _unfit(renderer: Renderer, why: str) -> InputError:
    return InputError(f"{renderer.path}: its chat template {why}")


def template_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as a template gets them; reasoning under both names that templates read, as in
    `transformers`."""
    shown = [
        {key: message[key] for key in TEMPLATE_MESSAGE_KEYS if key in message}
        for message in messages
    ]
    for message in shown:
        if "reasoning_content" in message:
            message["thinking"] = message["reasoning_content"]
    return shown
