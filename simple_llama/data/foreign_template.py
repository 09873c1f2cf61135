"""The process that renders a chat template, a program by somebody unknown; see template_renderer.

It runs in Jinja's sandbox, with bounded time, memory and output: a sandbox alone stops no template
that loops for ever. Started by its path, it can import nothing of the project.
"""

import json
import signal
import sys
from typing import Any

SECONDS = 2
"""Of processor time, for each cut of a conversation."""
BYTES = 2**30
MAX_CHARACTERS, GROWTH = 2**16, 16
"""Of a text: so many, and so many for each of the conversation's own."""
MAX_REASON = 200
DATE = (2024, 7, 26)
"""What `strftime_now` tells templates that write a date: always the same, so that the same data
make the same tokens. It is the one that Llama 3.1's template falls back to."""


def _compiled(template: str, blocks: list[tuple[int, int]], written: list[str]) -> Any:
    """The template in an environment as `transformers` sets it up (utils/chat_template_utils.py),
    without what gives other text on each call. Its generation blocks are noted in `blocks`, as
    places in what `written` holds by then."""
    from datetime import datetime

    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The block in which replies stand."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_noted"), [], [], body).set_lineno(line)

        def _noted(self, caller: Any) -> str:
            start = sum(map(len, written))
            text: str = caller()
            blocks.append((start, start + len(text)))
            return text

    def refuse(message: str) -> None:
        raise ValueError(message)

    def drawn(*_: Any, **__: Any) -> None:
        raise ValueError("it writes other text on each call")

    def tojson(value: Any, ensure_ascii: bool = False, **settings: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **settings)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters |= {"tojson": tojson, "random": drawn}
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime(*DATE).strftime(form),
        "lipsum": drawn,
    }
    return environment.from_string(template)


Text = tuple[str, list[tuple[int, int]]]
"""What a template made of one cut, and where in it the generation blocks stand."""


def _texts(
    parsed: Any,
    blocks: list[tuple[int, int]],
    written: list[str],
    variables: dict[str, Any],
    job: dict[str, Any],
) -> list[Text]:
    most = MAX_CHARACTERS + GROWTH * _size(job)
    known = {"tools": None, "documents": None, **variables, **job["variables"]}
    texts = []
    for count, begins in job["cuts"]:
        blocks.clear()
        written.clear()
        size = 0
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        messages = job["messages"][:count]
        for part in parsed.generate(**known, messages=messages, add_generation_prompt=begins):
            written.append(part)
            size += len(part)
            if size > most:
                raise ValueError(f"it writes more than {most} characters")
        texts.append(("".join(written), list(blocks)))
    signal.setitimer(signal.ITIMER_PROF, 0)
    return texts


def _size(job: dict[str, Any]) -> int:
    """Characters of a conversation, about."""
    texts = [message.get("content") for message in job["messages"]]
    size = sum(len(text) for text in texts if isinstance(text, str))
    others = any(len(message) > 2 for message in job["messages"]) or job["variables"]
    return size + len(json.dumps(job)) if others else size


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"it needs more than {BYTES >> 20} MiB of memory"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 3] + "..."


def main() -> None:
    """Answer each line of stdin on stdout, until there are no more."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))

    def answer(value: Any) -> None:
        print(json.dumps(value), flush=True)

    blocks: list[tuple[int, int]] = []
    written: list[str] = []
    settings = json.loads(sys.stdin.readline())
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        parsed = _compiled(settings["template"], blocks, written)
    except Exception as error:
        answer(_reason(error))
        return
    answer("")
    signal.setitimer(signal.ITIMER_PROF, 0)
    for line in sys.stdin:
        for job in json.loads(line):
            try:
                texts = _texts(parsed, blocks, written, settings["variables"], job)
            except Exception as error:
                answer(_reason(error))
            else:
                answer(texts)


if __name__ == "__main__":
    main()
