"""Which prompt format a tokenizer is used with: the one that was set, or what it shows itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from simple_llama.data.prompt_formats import BOS, EOS, FORMATS, Message, PromptFormat, Refusal
from simple_llama.data.template_format import BLOCK, NAME, TemplateFormat, named_tokens
from simple_llama.data.template_renderer import Job, Renderer
from simple_llama.data.tokenizer_source import TokenizerSource, refusing
from simple_llama.errors import InputError

PROBES: list[list[Message]] = [
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
"""A template that makes the same ids of each, with and without a system prompt, is taken for the
same format. White space before a reply is left out: most formats drop it."""
SYSTEM: Message = {"role": "system", "content": " one\n"}

Prompts = Callable[[PromptFormat, Sequence[Message]], list[int]]
"""The ids (T,) of an inference prompt in a format."""


@dataclass(frozen=True, kw_only=True)
class FormatChoice:
    """A format and why it is that one."""

    format: PromptFormat | TemplateFormat
    """With EOS and BOS as the tokenizer calls them."""
    reason: str


def choose_format(
    wanted: str, source: TokenizerSource, system_prompt: str, prompts: Prompts
) -> FormatChoice:
    """The format `wanted`, or what `auto` finds in the tokenizer's config, template and tokens.

    system_prompt: what stands in for a missing one. prompts: how formats are written here.
    Raises InputError where nothing points to a format, or a format lacks what it needs.
    """
    named = source.config.get("prompt_format")
    if wanted != "auto":
        return _choice(wanted, source, "set by prompt_format")
    if isinstance(named, str) and (named in FORMATS or named == NAME):
        return _choice(named, source, "named in its config")
    if source.template is not None:
        try:
            name = None
            # what its generation blocks leave out, none of ours would
            if not BLOCK.search(source.template):
                name = _same_template(source, source.template, system_prompt, prompts)
            if name is not None:
                return _choice(name, source, "its chat template makes the same prompt")
            return _choice(NAME, source, "its own chat template")
        except InputError as error:
            raise InputError(
                f"{error}; prompt_format (--prompt-format) replaces it: one of {', '.join(FORMATS)}"
            ) from None
    vocabulary = source.tokenizer.get_vocab()
    for name, known in FORMATS.items():
        tokens = [token for token in known.tokens if token not in (EOS, BOS)]
        if tokens and vocabulary.keys() >= set(tokens):
            return _choice(name, source, f"it has the tokens {' '.join(tokens)}")
    if source.eos is not None:
        reason = f"it has no chat template, and {source.eos} is the only control token needed"
        return _choice("zephyr", source, reason)
    raise InputError(
        f"{source.path}: no tokens of any format in it: set prompt_format (--prompt-format) to one "
        f"of {', '.join(FORMATS)} (tokens that are missing are added)"
    )


def _choice(name: str, source: TokenizerSource, reason: str) -> FormatChoice:
    if name != NAME:
        return FormatChoice(format=_resolved(name, source), reason=reason)
    own = TemplateFormat(source)
    return FormatChoice(format=own, reason="; ".join((reason, *own.notes)))


def check_ids(
    source: TokenizerSource, own: TemplateFormat, prompt: Callable[[Sequence[Message]], list[int]]
) -> None:
    """That a chat template's prompts have the ids that the tokenizer makes of them as they are.

    Raises InputError."""
    for probe, text in own.texts(PROBES):
        if _ids(source, text) != prompt(probe):
            raise InputError(
                f"{source.path}: the tokenizer makes other ids of its chat template's text than of "
                "the same between control tokens, wanted another prompt_format"
            )


def _same_template(
    source: TokenizerSource, template: str, system_prompt: str, prompts: Prompts
) -> str | None:
    """The name of the format whose inference prompts have the same ids, be they with or without a
    system prompt. What the template refuses is compared with nothing, but for all it must write:
    conversations without a system prompt, which get ours."""
    ours: list[Message] = [{"role": "system", "content": system_prompt}] if system_prompt else []
    conversations = [ours + probe for probe in PROBES] + [[SYSTEM, *probe] for probe in PROBES]
    jobs = [Job(messages=list(map(dict, one)), cuts=[(len(one), True)]) for one in conversations]
    done = Renderer(source.template_path, template, named_tokens(source)).render(jobs)
    if any(isinstance(one, Refusal) for one in done[: len(PROBES)]):
        return None
    pairs = [
        (one, cuts[0].text)
        for one, cuts in zip(conversations, done)
        if not isinstance(cuts, Refusal)
    ]
    vocabulary = source.tokenizer.get_vocab()
    for name, known in FORMATS.items():
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
    with refusing(f"{source.path}: the tokenizer cannot encode a text"):
        return list(source.tokenizer.encode(text, add_special_tokens=False).ids)


def _looks_like(known: PromptFormat, messages: Sequence[Message], text: str) -> bool:
    """But for white space: ids take a tokenizer of their own for each format."""
    pieces = known.render(messages, "", "last_reply")
    return "".join(text.split()) == "".join("".join(piece for piece, _ in pieces).split())


def _resolved(name: str, source: TokenizerSource) -> PromptFormat:
    if source.eos is None and EOS in FORMATS[name].tokens:
        raise InputError(
            f"{source.path}: no end-of-sequence token found, which {name} ends replies with: "
            "wanted 'eos_token' in a tokenizer_config.json, or prompt_format chatml or llama3"
        )
    return FORMATS[name].resolved(eos=source.eos, bos=source.bos, special=source.markers)
