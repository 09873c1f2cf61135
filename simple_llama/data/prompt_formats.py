"""Prompt formats as data: what stands before and after each message, and one renderer for all.

    begin, then each message as  joiner, before, content, after

    <|im_start|>user\\nquestion<|im_end|>\\n<|im_start|>assistant\\nreply<|im_end|>
                                                                 ^^^^^^^^^^^^^^^ supervised
    |--------------------- the inference prompt -----------------|

A joiner stands between two messages, so nothing follows the last stop token: it would never be
trained or generated. Training, inference, and the Jinja template for other programs are all made
from the same description.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant" | "tool", "content": text}, and of a reply perhaps
"weight": 1 or 0, whether it is trained, which otherwise `supervise` says. What else may be in it
stands at messages.Message."""


class Control(str):
    """A control token by its name. It becomes an id; every other str is text."""

    __slots__ = ()


EOS, BOS = Control("EOS"), Control("BOS")
"""Stand for what the tokenizer at hand has; see PromptFormat.resolved."""

Pieces = tuple[str, ...]
"""Text and Control."""

Piece = tuple[str, bool]
"""Text or Control of a rendered conversation, and whether it is a target of the loss."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a format can't write a conversation, in a line."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one kind of message is put in."""

    joiner: Pieces
    """Left out before the first message of a conversation."""
    before: Pieces
    after: Pieces


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """A format. Its replies end in one control token, the stop token of generation."""

    name: str
    begin: Pieces
    system: Turn
    user: Turn
    reply: Turn
    system_always: bool
    """Whether an empty system prompt is still written; else its whole turn is left out."""
    hides: ClassVar = frozenset(("reasoning_content", "chat_template_kwargs"))
    """What messages may say and it does not show."""
    calls: ClassVar = False
    """Whether it shows calls of tools."""
    strip: Literal["nothing", "replies", "everything"]
    """White space taken off: none, before replies, or around every message.

    Where the prompt ends in text, such as a line break, most tokenizers make one token of it and
    of white space that follows. Generation cannot: it starts after the prompt's last token."""

    @property
    def stop(self) -> str:
        """The control token that ends a reply."""
        return self.reply.after[0]

    @property
    def tokens(self) -> list[str]:
        """Its control tokens, each once, in the order of a prompt."""
        pieces = [*self.begin]
        for turn in (self.system, self.user, self.reply):
            pieces += (*turn.joiner, *turn.before, *turn.after)
        return list(dict.fromkeys(piece for piece in pieces if isinstance(piece, Control)))

    @property
    def controls(self) -> list[str]:
        """What is a control token where the format writes it, and text elsewhere."""
        return self.tokens

    def resolved(
        self, *, eos: str | None, bos: str | None, special: Iterable[str]
    ) -> "PromptFormat":
        """With EOS and BOS as a tokenizer calls them (a BOS that it lacks is left out), and with
        markers that are special tokens of it as the control tokens which they are there."""
        names = sorted(special, key=len, reverse=True)
        split = re.compile(f"({'|'.join(map(re.escape, names))})" if names else "(?!)")

        def pieces(given: Pieces) -> Pieces:
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

        An optional system prompt, then user and assistant in turns. After a user turn stands what
        a reply begins with. `system_prompt` takes the place of a missing one.
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
        """The same of each conversation, up to its last target: an example each."""
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
        """The pieces of an inference prompt: of messages that end with a user turn."""
        if any(map(uses_tools, messages)):
            return Refusal(NO_TOOLS)
        return self.render(messages, system_prompt, "last_reply")

    def chat_template(self, system_prompt: str) -> str:
        """The format as Jinja, for `transformers` and servers; replies in generation blocks, from
        which `transformers` makes the mask."""
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
    """Whether it offers tools, calls one, or is a result."""
    return "tool_calls" in message or "tools" in message or message["role"] == "tool"


def _fixed(pieces: Pieces) -> list[tuple[str, bool]]:
    """What is no target."""
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
"""Of str.format, which halves the braces."""


def _output(before: Pieces, content: str = "", after: Pieces = ()) -> str:
    """Jinja that writes pieces, what the expression `content` gives, and pieces; or nothing."""
    parts = [_quoted("".join(pieces)) if pieces else "" for pieces in (before, after)]
    sum_ = " + ".join(part for part in (parts[0], content, parts[1]) if part)
    return f"{{{{- {sum_} -}}}}" if sum_ else ""


def _quoted(text: str) -> str:
    """A Jinja string."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return "'" + escaped.replace("\n", "\\n").replace("\r", "\\r") + "'"


def _chat(joiner: Pieces, before: tuple[str, ...], after: Pieces) -> dict[str, Turn]:
    """The turns of a format that differ in the role's name alone; ROLE stands for it."""
    return {
        field: Turn(
            joiner=joiner,
            before=tuple(type(piece)(piece.replace("ROLE", role)) for piece in before),
            after=after,
        )
        for field, role in (("system", "system"), ("user", "user"), ("reply", "assistant"))
    }


CONTROL_TOKENS = ("<PAD>", "<UNK>", "<SOT>", "<EOT>", "<SOU>", "<EOU>", "<SOA>", "<EOA>")
"""Of a tokenizer made for SimpleLLaMA."""

FORMATS = {
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
        # https://huggingface.co/meta-llama/Meta-Llama-3-8B-Instruct, which strips too; 3.1 and
        # later put two lines of dates before the system prompt
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
