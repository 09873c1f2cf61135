"""Rendering conversations with a chat template that came with a tokenizer, in a process of its own.

One process renders any number of them:

    here                                          foreign_template.py
    template, variables            ─────────▶     compiled once
    conversations, a batch a line  ─────────▶     each cut of each rendered
    their texts, or why not        ◀─────────     one conversation a line, as soon as it is done
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
from simple_llama.data.foreign_template import SECONDS
from simple_llama.data.prompt_formats import Refusal
from simple_llama.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Job:
    """A conversation, and which beginnings of it are to be rendered."""

    messages: list[dict[str, Any]]
    cuts: list[tuple[int, bool]]
    """How many messages, and whether what a reply begins with is to follow."""
    variables: dict[str, Any] = field(default_factory=dict)
    """Further names that the template may look at, such as `tools`."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a template made of one cut."""

    text: str
    blocks: list[tuple[int, int]]
    """Where in the text its {% generation %} blocks stand."""


class Renderer:
    """A template and the process that renders it, which starts with the first job and ends with
    this object, or with the process it is in."""

    def __init__(self, path: Path, template: str, variables: Mapping[str, str]) -> None:
        """path: where it stands, for messages. variables: bos_token and so on."""
        self.path, self.template, self.variables = path, template, dict(variables)
        self._child: subprocess.Popen[bytes] | None = None

    def render(self, jobs: Sequence[Job]) -> list[list[Rendered] | Refusal]:
        """The text of each cut of each job. Raises InputError where the template is none, does
        not end, or outgrows its memory."""
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
            start_new_session=True,  # Ctrl-C is for those who wait for it
        )
        weakref.finalize(self, _end, self._child)
        assert self._child.stdin is not None
        given = {"template": self.template, "variables": self.variables}
        with suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps(given).encode() + b"\n")
            self._child.stdin.flush()
        fault = self._answer([])
        if fault:
            raise InputError(f"{self.path}: its chat template is none: {fault}")
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
            why = f"does not end within {SECONDS} s of processor time"
        else:
            why = f"broke the process that renders it ({child.returncode})"
        at = f", for a conversation that begins {_shown(messages[0])}" if messages else ""
        raise InputError(f"{self.path}: its chat template {why}{at}")


def _shown(message: Mapping[str, Any]) -> str:
    text = str(message.get("content"))
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _end(child: "subprocess.Popen[bytes]") -> None:
    """It ends when nothing more can come."""
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    child.wait()
