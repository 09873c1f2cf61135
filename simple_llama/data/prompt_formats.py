"""Prompt formats as data: the text before and after each message, and one renderer for all formats.

    begin, then each message as  joiner, before, content, after

    <|im_start|>user\\nquestion<|im_end|>\\n<|im_start|>assistant\\nreply<|im_end|>
                                                                 ^^^^^^^^^^^^^^^ supervised
    |--------------------- the inference prompt -----------------|

A joiner stands between two messages and not after the last one: text after the last stop token
would be neither trained nor generated. Training examples, inference prompts and the Jinja template
for other programs all come from the same description.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant" | "tool", "content": text}. A reply may have "weight": 1
or 0 says whether it is trained; without it, `supervise` decides. messages.Message has the rest."""


class Control(str):
    """The name of a control token, which becomes one id. Every other str is text."""

    __slots__ = ()


EOS, BOS = Control("EOS"), Control("BOS")
"""Placeholders for a tokenizer's own tokens; PromptFormat.resolved replaces them."""

FixedPieces = tuple[str, ...]
"""Fixed text and control tokens of a format."""

Piece = tuple[str, bool]
"""Text or Control of a rendered conversation, and whether it is a target of the loss.

A text that spans several pieces is encoded as one; see assembly."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a format cannot write a conversation, in one line."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Turn:
    """The fixed pieces around the messages of one role."""

    joiner: FixedPieces
    """Before each message except the first of a conversation."""
    before: FixedPieces
    after: FixedPieces


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """A prompt format. Each reply ends with one control token, the stop token of generation."""

    name: str
    begin: FixedPieces
    system: Turn
    user: Turn
    reply: Turn
    system_always: bool
    """Whether the system turn is written even if the system prompt is empty."""
    hidden_keys: ClassVar = frozenset(("reasoning_content", "chat_template_kwargs"))
    """Keys of messages that the format does not write."""
    shows_calls: ClassVar = False
    """Whether the format writes tool calls."""
    strip: Literal["nothing", "replies", "everything"]
    """Where white space is removed: nowhere, at the start of replies, or around every message.

    If a prompt ends in text, such as a line break, most tokenizers merge it with white space at the
    start of the reply into one token. Generation cannot do so: it starts after the prompt's last
    token."""

    @property
    def stop(self) -> str:
        """The control token that ends a reply."""
        return self.reply.after[0]

    @property
    def tokens(self) -> list[str]:
        """The control tokens of the format, each once, in the order of a prompt."""
        pieces = [*self.begin]
        for turn in (self.system, self.user, self.reply):
            pieces += (*turn.joiner, *turn.before, *turn.after)
        return list(dict.fromkeys(piece for piece in pieces if isinstance(piece, Control)))

    @property
    def controls(self) -> list[str]:
        """Tokens that are control tokens where the format writes them, and text in messages."""
        return self.tokens

    def resolved(
        self, *, eos: str | None, bos: str | None, special: Iterable[str]
    ) -> "PromptFormat":
        """The format for one tokenizer. EOS and BOS become its tokens; without a BOS token, BOS is
        omitted. Markers in fixed text that are special tokens of it become control tokens."""
        names = sorted(special, key=len, reverse=True)
        split = re.compile(f"({'|'.join(map(re.escape, names))})" if names else "(?!)")

        def pieces(given: FixedPieces) -> FixedPieces:
            found: list[str] = []
            for piece in given:
                if piece is EOS or piece is BOS:
                    name = eos if piece is EOS else bos
                    found += [] if name is None else [Control(name)]
                elif isinstance(piece, Control):
                    found.append(piece)
                else:
                    parts = split.split(piece)
                    found += (
                        Control(part) if index % 2 else part
                        for index, part in enumerate(parts)
                        if part
                    )
            return tuple(found)

        def turn(given: Turn) -> Turn:
            return Turn(
                joiner=pieces(given.joiner),
                before=pieces(given.before),
                after=pieces(given.after),
            )

        return replace(
            self,
            begin=pieces(self.begin),
            system=turn(self.system),
            user=turn(self.user),
            reply=turn(self.reply),
        )

    def render(
        self,
        messages: Sequence[Message],
        system_prompt: str,
        supervise: Literal["last_reply", "all_replies"],
    ) -> list[Piece]:
        """Text and Control pieces of a conversation, each with whether it is a target of the loss.

        messages: an optional system message, then user and assistant in turns. A conversation that
        ends with a user turn ends with the start of a reply. `system_prompt` is used if there is no
        system message.
        """
        turns = list(messages)
        system = turns.pop(0)["content"] if turns[0]["role"] == "system" else system_prompt
        if self.strip == "everything":
            system = system.strip()
        written = bool(system) or self.system_always
        pieces = _fixed(self.begin)
        if written:
            pieces += [*_fixed(self.system.before), (system, False), *_fixed(self.system.after)]
        reply_begin = _fixed(self.reply.joiner + self.reply.before)
        last = len(turns) - 1
        for index, message in enumerate(turns):
            assert message["role"] == ("assistant" if index % 2 else "user"), message["role"]
            content = message["content"]
            if self.strip == "everything":
                content = content.strip()
            if index % 2 == 0:
                if index or written:
                    pieces += _fixed(self.user.joiner)
                pieces += [*_fixed(self.user.before), (content, False), *_fixed(self.user.after)]
                pieces += reply_begin
            else:
                if self.strip == "replies":
                    content = content.lstrip()
                target = bool(message.get("weight", supervise == "all_replies" or index == last))
                pieces += [(content, target), (self.stop, target)]
        return pieces

    def render_all(
        self,
        conversations: Sequence[Sequence[Message]],
        system_prompt: str,
        supervise: Literal["last_reply", "all_replies"],
    ) -> list[list[list[Piece]] | Refusal]:
        """One example per conversation: its pieces up to the last target."""
        rendered: list[list[list[Piece]] | Refusal] = []
        for messages in conversations:
            if any(map(uses_tools, messages)):
                rendered.append(Refusal(NO_TOOLS))
                continue
            pieces = self.render(messages, system_prompt, supervise)
            while pieces and not pieces[-1][1]:
                pieces.pop()
            rendered.append([pieces])
        return rendered

    def prompt(self, messages: Sequence[Message], system_prompt: str) -> list[Piece] | Refusal:
        """The pieces of the inference prompt of messages that end with a user turn."""
        if any(map(uses_tools, messages)):
            return Refusal(NO_TOOLS)
        return self.render(messages, system_prompt, "last_reply")

    def chat_template(self, system_prompt: str) -> str:
        """The format as a Jinja template for `transformers` and servers. Replies stand in
        generation blocks, from which `transformers` makes the loss mask."""
        content = "message['content']"
        stripped = f"({content} | trim)" if self.strip == "everything" else content
        reply = f"{content}.lstrip()" if self.strip == "replies" else stripped
        system = _output(self.system.before, "system", self.system.after)
        joiner = _output(self.user.joiner)
        if not self.system_always:
            system = f"{{%- if system -%}}{system}{{%- endif -%}}"
            joiner = joiner and f"{{%- if system or not loop.first -%}}{joiner}{{%- endif -%}}"
        return TEMPLATE.format(
            system_end=" | trim" if self.strip == "everything" else "",
            system_prompt=_quoted(system_prompt),
            system=_output(self.begin) + system,
            user=joiner + _output(self.user.before, stripped, self.user.after),
            reply_begin=_output(self.reply.joiner + self.reply.before),
            reply=_output((), reply, self.reply.after),
        )


NO_TOOLS = "tool calls, which it does not show"


def uses_tools(message: Message) -> bool:
    """Whether a message offers tools, calls a tool, or is the result of a call."""
    return "tool_calls" in message or "tools" in message or message["role"] == "tool"


def _fixed(pieces: FixedPieces) -> list[tuple[str, bool]]:
    """The pieces, marked as no targets."""
    return [(piece, False) for piece in pieces]


TEMPLATE = """\
{{%- if messages[0]['role'] == 'system' -%}}
{{%- set system = messages[0]['content']{system_end} -%}}{{%- set turns = messages[1:] -%}}
{{%- else -%}}
{{%- set system = {system_prompt}{system_end} -%}}{{%- set turns = messages -%}}
{{%- endif -%}}
{system}
{{%- for message in turns -%}}
{{%- if message['role'] == 'user' -%}}
{user}
{{%- elif message['role'] == 'assistant' -%}}
{reply_begin}{{%- generation -%}}{reply}{{%- endgeneration -%}}
{{%- else -%}}
{{{{- raise_exception('roles are: one system at the start, then user and assistant') -}}}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{reply_begin}{{%- endif -%}}
"""
"""The template's frame for str.format, which turns each {{ into {."""


def _output(before: FixedPieces, content: str = "", after: FixedPieces = ()) -> str:
    """A Jinja expression that writes `before`, the value of the expression `content`, and `after`;
    "" if all are empty."""
    parts = [_quoted("".join(pieces)) if pieces else "" for pieces in (before, after)]
    sum_ = " + ".join(part for part in (parts[0], content, parts[1]) if part)
    return f"{{{{- {sum_} -}}}}" if sum_ else ""


def _quoted(text: str) -> str:
    """The text as a Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return "'" + escaped.replace("\n", "\\n").replace("\r", "\\r") + "'"


def _chat(joiner: FixedPieces, before: tuple[str, ...], after: FixedPieces) -> dict[str, Turn]:
    """The turns of a format in which they differ only in the name of the role. ROLE in `before` is
    replaced by it."""
    return {
        field: Turn(
            joiner=joiner,
            before=tuple(type(piece)(piece.replace("ROLE", role)) for piece in before),
            after=after,
        )
        for field, role in (("system", "system"), ("user", "user"), ("reply", "assistant"))
    }


CONTROL_TOKENS = ("<PAD>", "<UNK>", "<SOT>", "<EOT>", "<SOU>", "<EOU>", "<SOA>", "<EOA>")
"""The control tokens of a tokenizer that was made for the format simple_llama."""

PROMPT_FORMATS = {
    one.name: one
    for one in (
        PromptFormat(
            name="simple_llama",
            begin=(),
            system=Turn(joiner=(), before=(Control("<SOT>"),), after=(Control("<EOT>"),)),
            user=Turn(joiner=("\n\n",), before=(Control("<SOU>"),), after=(Control("<EOU>"),)),
            reply=Turn(joiner=("\n",), before=(Control("<SOA>"),), after=(Control("<EOA>"),)),
            system_always=True,
            strip="nothing",
        ),
        # https://huggingface.co/Qwen/Qwen2.5-0.5B-Instruct and SmolLM2-135M-Instruct
        PromptFormat(
            name="chatml",
            begin=(),
            **_chat(("\n",), (Control("<|im_start|>"), "ROLE\n"), (Control("<|im_end|>"),)),
            system_always=False,
            strip="replies",
        ),
        # https://huggingface.co/meta-llama/Meta-Llama-3-8B-Instruct, which strips messages too.
        # Llama 3.1 and later write two lines of dates before the system prompt
        PromptFormat(
            name="llama3",
            begin=(Control("<|begin_of_text|>"),),
            **_chat(
                (),
                (Control("<|start_header_id|>"), "ROLE", Control("<|end_header_id|>"), "\n\n"),
                (Control("<|eot_id|>"),),
            ),
            system_always=False,
            strip="everything",
        ),
        # https://huggingface.co/HuggingFaceH4/zephyr-7b-beta and TinyLlama-1.1B-Chat-v1.0
        PromptFormat(
            name="zephyr",
            begin=(),
            **_chat(("\n",), ("<|ROLE|>\n",), (EOS,)),
            system_always=False,
            strip="replies",
        ),
        # https://github.com/tatsu-lab/stanford_alpaca, whose first sentence is our system prompt
        PromptFormat(
            name="alpaca",
            begin=(BOS,),
            system=Turn(joiner=(), before=(), after=()),
            user=Turn(joiner=("\n\n",), before=("### Instruction:\n",), after=()),
            reply=Turn(joiner=("\n\n",), before=("### Response:\n",), after=(EOS,)),
            system_always=False,
            strip="replies",
        ),
    )
}
