"""Chooses the prompt format of a tokenizer: the one that is set, or the one that its config, chat
template or tokens point to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from simple_llama.data.prompt_formats import (
    BOS,
    EOS,
    PROMPT_FORMATS,
    Message,
    PromptFormat,
    Refusal,
)
from simple_llama.data.template_format import (
    GENERATION_BLOCK,
    TEMPLATE_FORMAT,
    TemplateFormat,
    named_tokens,
)
from simple_llama.data.template_renderer import Renderer, RenderJob
from simple_llama.data.tokenizer_source import TokenizerSource, as_input_error
from simple_llama.errors import InputError

PROBE_CONVERSATIONS: list[list[Message]] = [
    [{"role": "user", "content": "two"}],
    [
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "<think>\nso\n</think>\n\nthree"},
        {"role": "user", "content": "four"},
    ],
    [
        {"role": "user", "content": " two\n"},
        {"role": "assistant", "content": "three \n"},
        {"role": "user", "content": "\n\nfour  "},
        {"role": "assistant", "content": "five"},
        {"role": "user", "content": "six"},
    ],
]
"""A chat template that gives the same ids as one of our formats for all of these, with and without
a system prompt, counts as that format. No reply starts with white space: most formats strip it."""
PROBE_SYSTEM_MESSAGE: Message = {"role": "system", "content": " one\n"}

EncodePrompt = Callable[[PromptFormat, Sequence[Message]], list[int]]
"""(format, messages) → token ids (T,) of the inference prompt."""


@dataclass(frozen=True, kw_only=True)
class FormatChoice:
    """A format, and why it was chosen."""

    format: PromptFormat | TemplateFormat
    """With EOS and BOS replaced by the tokenizer's tokens."""
    reason: str
    """For the user, in a line."""


def choose_format(
    wanted: str, source: TokenizerSource, system_prompt: str, prompts: EncodePrompt
) -> FormatChoice:
    """The format `wanted`; for `auto`, what the tokenizer's config, template or tokens point to.

    system_prompt: the default for conversations without one. prompts: encodes a prompt in a format.
    Raises InputError where nothing points to a format, or a token that the format needs is missing.
    """
    named = source.config.get("prompt_format")
    if wanted != "auto":
        return _choice(wanted, source, "set by prompt_format")
    if isinstance(named, str) and (named in PROMPT_FORMATS or named == TEMPLATE_FORMAT):
        return _choice(named, source, "named in its config")
    if source.template is not None:
        try:
            name = None
            # generation blocks may exclude parts of a reply from the loss; our formats cannot
            if not GENERATION_BLOCK.search(source.template):
                name = _same_template(source, source.template, system_prompt, prompts)
            if name is not None:
                return _choice(name, source, "its chat template makes the same prompt")
            return _choice(TEMPLATE_FORMAT, source, "its own chat template")
        except InputError as error:
            raise InputError(
                f"{error}; prompt_format (--prompt-format) replaces it: one of "
                f"{', '.join(PROMPT_FORMATS)}"
            ) from None
    vocabulary = source.tokenizer.get_vocab()
    for name, known in PROMPT_FORMATS.items():
        tokens = [token for token in known.tokens if token not in (EOS, BOS)]
        if tokens and vocabulary.keys() >= set(tokens):
            return _choice(name, source, f"it has the tokens {' '.join(tokens)}")
    if source.eos is not None:
        reason = f"it has no chat template, and {source.eos} is the only control token needed"
        return _choice("zephyr", source, reason)
    raise InputError(
        f"{source.path}: no tokens of any format in it: set prompt_format (--prompt-format) to one "
        f"of {', '.join(PROMPT_FORMATS)} (tokens that are missing are added)"
    )


def _choice(name: str, source: TokenizerSource, reason: str) -> FormatChoice:
    if name != TEMPLATE_FORMAT:
        return FormatChoice(format=_resolved(name, source), reason=reason)
    own = TemplateFormat(source)
    return FormatChoice(format=own, reason="; ".join((reason, *own.notes)))


def check_template_ids(
    source: TokenizerSource, own: TemplateFormat, prompt: Callable[[Sequence[Message]], list[int]]
) -> None:
    """Check that encoding a rendered prompt piece by piece gives the same ids as encoding it whole.

    Raises InputError."""
    for probe, text in own.prompt_texts(PROBE_CONVERSATIONS):
        if _ids(source, text) != prompt(probe):
            raise InputError(
                f"{source.path}: the tokenizer makes other ids of its chat template's text than of "
                "the same between control tokens, wanted another prompt_format"
            )


def _same_template(
    source: TokenizerSource, template: str, system_prompt: str, prompts: EncodePrompt
) -> str | None:
    """The name of the format whose inference prompts have the same ids as the template's; None if
    there is none.

    Probes that the template refuses are not compared. But it must not refuse those without a system
    prompt of their own, which get the default one.
    """
    ours: list[Message] = [{"role": "system", "content": system_prompt}] if system_prompt else []
    conversations = [ours + probe for probe in PROBE_CONVERSATIONS] + [
        [PROBE_SYSTEM_MESSAGE, *probe] for probe in PROBE_CONVERSATIONS
    ]
    jobs = [
        RenderJob(messages=list(map(dict, one)), prefixes=[(len(one), True)])
        for one in conversations
    ]
    done = Renderer(source.template_path, template, named_tokens(source)).render(jobs)
    if any(isinstance(one, Refusal) for one in done[: len(PROBE_CONVERSATIONS)]):
        return None
    pairs = [
        (one, prefixes[0].text)
        for one, prefixes in zip(conversations, done)
        if not isinstance(prefixes, Refusal)
    ]
    vocabulary = source.tokenizer.get_vocab()
    for name, known in PROMPT_FORMATS.items():
        needed = {source.eos if token is EOS else token for token in known.tokens} - {BOS}
        if not vocabulary.keys() >= needed:
            continue
        resolved = _resolved(name, source)
        if _looks_like(resolved, *pairs[0]) and all(
            _ids(source, text) == prompts(resolved, one) for one, text in pairs
        ):
            return name
    return None


def _ids(source: TokenizerSource, text: str) -> list[int]:
    with as_input_error(f"{source.path}: the tokenizer cannot encode a text"):
        return list(source.tokenizer.encode(text, add_special_tokens=False).ids)


def _looks_like(known: PromptFormat, messages: Sequence[Message], text: str) -> bool:
    """Whether the texts are equal but for white space. This quick check saves building a tokenizer
    for each format, which comparing ids needs."""
    pieces = known.render(messages, "", "last_reply")
    return "".join(text.split()) == "".join("".join(piece for piece, _ in pieces).split())


def _resolved(name: str, source: TokenizerSource) -> PromptFormat:
    if source.eos is None and EOS in PROMPT_FORMATS[name].tokens:
        raise InputError(
            f"{source.path}: no end-of-sequence token found, which {name} ends replies with: "
            "wanted 'eos_token' in a tokenizer_config.json, or prompt_format chatml or llama3"
        )
    return PROMPT_FORMATS[name].resolved(eos=source.eos, bos=source.bos, special=source.markers)
