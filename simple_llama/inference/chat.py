"""`simple-llama chat`: a conversation on the terminal, with one model or two side by side."""

import contextlib
import json
import shutil
import sys
from collections.abc import Generator, Iterator, Sequence
from itertools import count
from typing import Any

from simple_llama.data.tool_calls import parse_reply
from simple_llama.errors import InputError
from simple_llama.inference.replies import GenerationSettings, Replier, checked_text, load_replier
from simple_llama.inference.requests import read_tool_file
from simple_llama.inference.terminal import Columns, printable
from simple_llama.params.base import BaseParams
from simple_llama.params.reading import Params

HELP = """\
/reset         forget the conversation
/tool TEXT     the result of a call
/system TEXT   another system prompt, and a new conversation; without TEXT the model's own
/help          this
/exit          leave, as Ctrl-D does; Ctrl-C stops a reply
A line that begins with a space is never a command."""
MIN_COLUMNS_SIDE_BY_SIDE = 80
"""In a narrower terminal the two replies are printed one after the other."""


class Conversation:
    """A conversation with one model."""

    def __init__(
        self,
        name: str,
        replier: Replier,
        system: str | None,
        settings: GenerationSettings,
        tools: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.name, self._tools = name, list(tools)
        self._replier, self._settings = replier, settings
        self._generator = settings.generator()
        self.restart(system)

    def restart(self, system: str | None) -> None:
        """Forget all turns. system: None for the model's own system prompt."""
        self.system = system
        self._turns: list[dict[str, Any]] = []

    @property
    def pending_calls(self) -> list[str]:
        """The tool calls of the last reply, which wait for their results."""
        last = self._turns[-1] if self._turns else {}
        calls = [call["function"] for call in last.get("tool_calls", [])]
        return [f"{one['name']} {json.dumps(one['arguments'])}" for one in calls]

    def add_message(self, text: str, role: str = "user") -> int:
        """Add a message. Returns how many of the oldest turns were forgotten to make room for it.

        Half of the model's positions, or max_tokens if that is less, are kept free for the reply.
        Raises InputError, and leaves the message out, where it is too long by itself or the prompt
        format refuses it.
        """
        self._turns.append({"role": role, "content": text})
        ends = self._replier.max_length
        room = ends - min(self._settings.max_tokens, ends // 2)
        for forgotten in count():
            try:
                self._prompt = self._replier.tokenizer.prompt(self._messages())
            except InputError:
                self._turns.pop()
                raise
            if len(self._prompt) <= room:
                return forgotten
            if sum(turn["role"] == "user" for turn in self._turns) == 1:
                if len(self._prompt) < ends:
                    return forgotten
                self._turns.clear()
                raise InputError(
                    f"{self.name}: the message makes a prompt of {len(self._prompt)} tokens, the "
                    f"model has positions for {ends}"
                )
            del self._turns[0]
            while self._turns[0]["role"] != "user":
                del self._turns[0]
        raise AssertionError

    def reply(self) -> Generator[str, None, None]:
        """Yield the reply to the last message, piece by piece. A caller that stops ends it."""
        said = ""
        try:
            for piece in self._replier.reply(self._prompt, self._settings, self._generator):
                said += piece
                yield piece
        finally:
            message = {"role": "assistant", "content": said}
            self._turns.append(parse_reply(said) if self._tools else message)

    def _messages(self) -> list[dict[str, Any]]:
        if self.system is None and not self._tools:
            return self._turns
        own = self._replier.tokenizer.system_prompt
        system = {"role": "system", "content": own if self.system is None else self.system}
        return [system | ({"tools": self._tools} if self._tools else {}), *self._turns]


def chat(
    *,
    model: str,
    prompt_format: str,
    system: str | None,
    tools: str | None,
    compare: str | None,
    device: str,
    settings: GenerationSettings,
) -> None:
    """Chat until the input ends. compare: a second model's folder, "" for params.yaml's base.

    Raises InputError.
    """
    if system is not None:
        checked_text("--system", system)
    offered = [] if tools is None else read_tool_file(tools)
    replier = load_replier(model, device, prompt_format=prompt_format)
    talks = [Conversation(model, replier, system, settings, offered)]
    if compare is not None:
        base = compare or Params().section(BaseParams).model_path
        # the same prompt for both, as in the report
        other = load_replier(base, device, tokenizer=replier.tokenizer)
        talks.append(Conversation(base, other, system, settings, offered))
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (input() then has a history and can be edited)
        print(f"{' and '.join(talk.name for talk in talks)}. /help lists the commands.")
    for line in _lines(interactive):
        try:
            if not _answer(talks, line, interactive):
                break
        except InputError as error:
            if not interactive:
                raise
            _note(str(error), interactive)


def _lines(interactive: bool) -> Iterator[str]:
    while True:
        try:
            yield input("> " if interactive else "")
        except EOFError:
            if interactive:
                print()
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            print("\n(/exit or Ctrl-D leaves)")


def _answer(talks: Sequence[Conversation], line: str, interactive: bool) -> bool:
    """Answer a line, or carry out its command. Returns whether the chat goes on."""
    command, _, rest = line.partition(" ")
    match command:
        case "/exit":
            return False
        case "/help":
            print(HELP)
        case "/reset":
            for talk in talks:
                talk.restart(talk.system)
            _note("a new conversation", interactive)
        case "/system":
            for talk in talks:
                talk.restart(rest.strip() or None)
            _note("a new conversation, with this system prompt", interactive)
        case "/tool":
            if all(talk.pending_calls for talk in talks):
                _converse(talks, rest.strip(), interactive, "tool")
            else:
                _note("no call waits for a result", interactive)
        case _ if command.startswith("/"):
            _note(f"no command {printable(command)}: /help lists them", interactive)
        case _ if line.strip():
            _converse(talks, line.strip(), interactive)
    return True


def _converse(
    talks: Sequence[Conversation], text: str, interactive: bool, role: str = "user"
) -> None:
    for talk in talks:
        if forgotten := talk.add_message(text, role):
            turns = "turn" if forgotten == 1 else f"{forgotten} turns"
            _note(f"{talk.name}: the oldest {turns} forgotten, its positions are full", interactive)
    columns = shutil.get_terminal_size().columns
    try:
        if interactive and len(talks) > 1 and columns >= MIN_COLUMNS_SIDE_BY_SIDE:
            _side_by_side(talks, columns)
        else:
            _one_by_one(talks)
    except KeyboardInterrupt:
        if not interactive:
            raise
        print()
        _note("stopped", interactive)
    for talk in talks:
        for call in talk.pending_calls:
            _note(f"{talk.name} calls {call}: /tool TEXT gives the result", interactive)


def _one_by_one(talks: Sequence[Conversation]) -> None:
    for talk in talks:
        if len(talks) > 1:
            print(f"{talk.name}: ", end="")
        with contextlib.closing(talk.reply()) as pieces:
            for piece in pieces:
                print(printable(piece), end="", flush=True)
        print(flush=True)


def _side_by_side(talks: Sequence[Conversation], columns: int) -> None:
    """Print both replies at once, taking a token from each in turn."""
    table = Columns(sys.stdout, [talk.name for talk in talks], columns)
    with contextlib.ExitStack() as stack:
        speaking = {
            place: stack.enter_context(contextlib.closing(talk.reply()))
            for place, talk in enumerate(talks)
        }
        while speaking:
            for place, pieces in list(speaking.items()):
                try:
                    table.add(place, next(pieces))
                except StopIteration:
                    table.end(place)
                    del speaking[place]


def _note(text: str, interactive: bool) -> None:
    """Tell the user something; not on standard output where a program reads it."""
    print(f"({printable(text)})", file=sys.stdout if interactive else sys.stderr, flush=True)
