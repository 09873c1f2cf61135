"""Which prompt format a tokenizer is used with: the one that was set, or what it shows itself."""

from dataclasses import dataclass

from simple_llama.data.foreign_template import rendered
from simple_llama.data.prompt_formats import BOS, EOS, FORMATS, Message, PromptFormat
from simple_llama.data.tokenizer_source import TokenizerSource
from simple_llama.errors import InputError

PROBE: list[Message] = [
    {"role": "system", "content": "one"},
    {"role": "user", "content": "two"},
    {"role": "assistant", "content": "three"},
    {"role": "user", "content": "four"},
]
"""Two templates that make the same of it are taken for the same format."""


@dataclass(frozen=True, kw_only=True)
class FormatChoice:
    """A format and why it is that one."""

    format: PromptFormat
    """With EOS and BOS as the tokenizer calls them."""
    reason: str


def choose_format(wanted: str, source: TokenizerSource) -> FormatChoice:
    """The format `wanted`, or what `auto` finds in the tokenizer's config, template and tokens.

    Raises InputError where nothing points to a format, or a format lacks what it needs.
    """
    if wanted != "auto":
        return FormatChoice(format=_resolved(wanted, source), reason="set by prompt_format")
    named = source.config.get("prompt_format")
    if isinstance(named, str) and named in FORMATS:
        return FormatChoice(format=_resolved(named, source), reason="named in its config")
    if source.template is not None and (name := _same_template(source, source.template)):
        return FormatChoice(
            format=_resolved(name, source), reason="its chat template makes the same prompt"
        )
    vocabulary = source.tokenizer.get_vocab()
    foreign = source.template is not None
    replaced = "; its own chat template makes another prompt and is replaced" if foreign else ""
    for name, known in FORMATS.items():
        tokens = [token for token in known.tokens if token not in (EOS, BOS)]
        if tokens and vocabulary.keys() >= set(tokens):
            reason = f"it has the tokens {' '.join(tokens)}{replaced}"
            return FormatChoice(format=_resolved(name, source), reason=reason)
    if source.eos is not None and not foreign:
        return FormatChoice(
            format=_resolved("zephyr", source),
            reason=f"it has no chat template, and {source.eos} is the only control token needed",
        )
    found = "its chat template is none of ours" if foreign else "no tokens of any format in it"
    raise InputError(
        f"{source.path}: {found}: set prompt_format (--prompt-format) to one of "
        f"{', '.join(FORMATS)} (tokens that are missing are added)"
    )


def _same_template(source: TokenizerSource, template: str) -> str | None:
    """The name of the format whose inference prompt is the same text."""
    tokens = {
        f"{kind}_token": token
        for kind in ("bos", "eos", "unk", "pad")
        if (token := source.named(kind)) is not None
    }
    text = rendered(template, PROBE, tokens)
    for name, known in FORMATS.items():
        if source.eos is None and EOS in known.tokens:
            continue
        pieces = _resolved(name, source).render(PROBE, "", "last_reply")
        if text == "".join(piece for piece, _ in pieces):
            return name
    return None


def _resolved(name: str, source: TokenizerSource) -> PromptFormat:
    if source.eos is None and EOS in FORMATS[name].tokens:
        raise InputError(
            f"{source.path}: no end-of-sequence token found, which {name} ends replies with: "
            "wanted 'eos_token' in a tokenizer_config.json, or prompt_format chatml or llama3"
        )
    return FORMATS[name].resolved(eos=source.eos, bos=source.bos, special=source.special)
