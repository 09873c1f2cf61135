"""Renders conversations with a tokenizer's chat template, in a separate process.

One process renders all conversations:

    here                                            foreign_template.py
    template, variables              ─────────▶     compiles it once
    conversations, one batch a line  ─────────▶     renders each prefix of each
    texts, or why it was refused     ◀─────────     one line for each conversation
"""

import json
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simple_llama.data import foreign_template
from simple_llama.data.foreign_template import MAX_CPU_SECONDS
from simple_llama.data.prompt_formats import Refusal
from simple_llama.errors import InputError


@dataclass(frozen=True, kw_only=True)
class RenderJob:
    """A conversation, and which of its prefixes to render."""

    messages: list[dict[str, Any]]
    prefixes: list[tuple[int, bool]]
    """(number of messages, add_generation_prompt) of each prefix."""
    variables: dict[str, Any] = field(default_factory=dict)
    """Other variables of the template, such as `tools`."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The rendered text of one prefix."""

    text: str
    blocks: list[tuple[int, int]]
    """The spans of its {% generation %} blocks."""


class Renderer:
    """A template and the process that renders it.

    The process starts with the first job. It ends when this object is deleted or this process ends.
    """

    def __init__(self, path: Path, template: str, variables: Mapping[str, str]) -> None:
        """path: the template's file, for error messages. variables: bos_token and so on."""
        self.path, self.template, self.variables = path, template, dict(variables)
        self._child: subprocess.Popen[bytes] | None = None

    def render(self, jobs: Sequence[RenderJob]) -> list[list[Rendered] | Refusal]:
        """The texts of each job's prefixes, or a Refusal. Raises InputError where the template is
        invalid, does not end, or needs too much memory."""
        child = self._started()
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps([vars(job) for job in jobs]).encode() + b"\n")
            child.stdin.flush()
        except BrokenPipeError:
            self._died()
        done: list[list[Rendered] | Refusal] = []
        for job in jobs:
            answer = self._answer(job.messages)
            if isinstance(answer, str):
                done.append(Refusal(answer))
            else:
                done.append(
                    [Rendered(text, [(a, b) for a, b in blocks]) for text, blocks in answer]
                )
        return done

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is not None:
            return self._child
        self._child = subprocess.Popen(
            [sys.executable, "-I", foreign_template.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C must reach only this process, which then ends it
        )
        weakref.finalize(self, _end, self._child)
        assert self._child.stdin is not None
        given = {"template": self.template, "variables": self.variables}
        with suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps(given).encode() + b"\n")
            self._child.stdin.flush()
        fault = self._answer([])
        if fault:
            raise InputError(f"{self.path}: its chat template is invalid: {fault}")
        return self._child

    def _answer(self, messages: Sequence[Mapping[str, Any]]) -> Any:
        assert self._child is not None and self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line.endswith(b"\n"):
            self._died(messages)
        return json.loads(line)

    def _died(self, messages: Sequence[Mapping[str, Any]] = ()) -> None:
        assert self._child is not None
        child, self._child = self._child, None
        _end(child)
        if child.returncode == -signal.SIGPROF:
            why = f"does not end within {MAX_CPU_SECONDS} s of processor time"
        else:
            why = f"broke the process that renders it ({child.returncode})"
        at = f", for a conversation that begins {_shown(messages[0])}" if messages else ""
        raise InputError(f"{self.path}: its chat template {why}{at}")


def _shown(message: Mapping[str, Any]) -> str:
    text = str(message.get("content"))
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _end(child: "subprocess.Popen[bytes]") -> None:
    """Close the pipes, at which the process ends, and wait for it."""
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    child.wait()
