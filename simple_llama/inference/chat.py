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
from simple_llama.inference.replies import Replier, Settings, checked_text, load_replier
from simple_llama.inference.requests import read_tool_file
from simple_llama.inference.terminal import Columns, printable
from simple_llama.params import BaseParams, Params

HELP = """\
/reset         forget the conversation
/tool TEXT     the result of a call
/system TEXT   another system prompt, and a new conversation; without TEXT the model's own
/help          this
/exit          leave, as Ctrl-D does; Ctrl-C stops a reply
A line that begins with a space is never a command."""
NARROW = 80
"""Columns of a terminal below which two replies stand one after the other."""


class Voice:
    """A model and the conversation as it went with it."""

    def __init__(
        self,
        name: str,
        replier: Replier,
        system: str | None,
        settings: Settings,
        tools: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.name, self._tools = name, list(tools)
        self._replier, self._settings = replier, settings
        self._generator = settings.generator()
        self.restart(system)

    def restart(self, system: str | None) -> None:
        """Forget the conversation; None: the model's own system prompt."""
        self.system = system
        self._turns: list[dict[str, Any]] = []

    @property
    def called(self) -> list[str]:
        """The calls that wait for their results."""
        last = self._turns[-1] if self._turns else {}
        calls = [call["function"] for call in last.get("tool_calls", [])]
        return [f"{one['name']} {json.dumps(one['arguments'])}" for one in calls]

    def hear(self, text: str, role: str = "user") -> int:
        """Take a message; the number of oldest turns that had to be forgotten for it.

        Half of the model's positions, or max_tokens if that is less, stay free for the reply.
        Raises InputError where the message alone is too long, or the prompt format refuses it;
        then it is as if never said.
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
        """The reply to what was heard, piece by piece. Where it is left, it ended."""
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
    settings: Settings,
) -> None:
    """Talk until the input ends. compare: another model, "" for params.yaml's base model.

    Raises InputError.
    """
    if system is not None:
        checked_text("--system", system)
    offered = [] if tools is None else read_tool_file(tools)
    replier = load_replier(model, device, prompt_format=prompt_format)
    voices = [Voice(model, replier, system, settings, offered)]
    if compare is not None:
        base = compare or Params().section(BaseParams).model_path
        # the same prompt for both, as in the report
        other = load_replier(base, device, tokenizer=replier.tokenizer)
        voices.append(Voice(base, other, system, settings, offered))
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (input() then has a history and can be edited)
        print(f"{' and '.join(voice.name for voice in voices)}. /help lists the commands.")
    for line in _lines(interactive):
        try:
            if not _answer(voices, line, interactive):
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


def _answer(voices: Sequence[Voice], line: str, interactive: bool) -> bool:
    """Whether the conversation goes on after this line."""
    command, _, rest = line.partition(" ")
    match command:
        case "/exit":
            return False
        case "/help":
            print(HELP)
        case "/reset":
            for voice in voices:
                voice.restart(voice.system)
            _note("a new conversation", interactive)
        case "/system":
            for voice in voices:
                voice.restart(rest.strip() or None)
            _note("a new conversation, with this system prompt", interactive)
        case "/tool":
            if all(voice.called for voice in voices):
                _converse(voices, rest.strip(), interactive, "tool")
            else:
                _note("no call waits for a result", interactive)
        case _ if command.startswith("/"):
            _note(f"no command {printable(command)}: /help lists them", interactive)
        case _ if line.strip():
            _converse(voices, line.strip(), interactive)
    return True


def _converse(voices: Sequence[Voice], text: str, interactive: bool, role: str = "user") -> None:
    for voice in voices:
        if forgotten := voice.hear(text, role):
            turns = "turn" if forgotten == 1 else f"{forgotten} turns"
            _note(
                f"{voice.name}: the oldest {turns} forgotten, its positions are full", interactive
            )
    columns = shutil.get_terminal_size().columns
    try:
        if interactive and len(voices) > 1 and columns >= NARROW:
            _side_by_side(voices, columns)
        else:
            _one_by_one(voices)
    except KeyboardInterrupt:
        if not interactive:
            raise
        print()
        _note("stopped", interactive)
    for voice in voices:
        for call in voice.called:
            _note(f"{voice.name} calls {call}: /tool TEXT gives the result", interactive)


def _one_by_one(voices: Sequence[Voice]) -> None:
    for voice in voices:
        if len(voices) > 1:
            print(f"{voice.name}: ", end="")
        with contextlib.closing(voice.reply()) as pieces:
            for piece in pieces:
                print(printable(piece), end="", flush=True)
        print(flush=True)


def _side_by_side(voices: Sequence[Voice], columns: int) -> None:
    """Both at once, token by token in turns."""
    table = Columns(sys.stdout, [voice.name for voice in voices], columns)
    with contextlib.ExitStack() as stack:
        speaking = {
            place: stack.enter_context(contextlib.closing(voice.reply()))
            for place, voice in enumerate(voices)
        }
        while speaking:
            for place, pieces in list(speaking.items()):
                try:
                    table.add(place, next(pieces))
                except StopIteration:
                    table.end(place)
                    del speaking[place]


def _note(text: str, interactive: bool) -> None:
    """To the person, not into what a program reads."""
    print(f"({printable(text)})", file=sys.stdout if interactive else sys.stderr, flush=True)
