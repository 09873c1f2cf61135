"""The process that renders an untrusted chat template for template_renderer.

The template runs in Jinja's sandbox with limits on time, memory and output, because the sandbox
alone does not stop endless loops. This file is run by its path and imports nothing of the project.
"""

import json
import signal
import sys
from typing import Any

MAX_CPU_SECONDS = 2
"""For each prefix of a conversation."""
MAX_MEMORY_BYTES = 2**30
BASE_OUTPUT_CHARACTERS, OUTPUT_PER_INPUT_CHARACTER = 2**16, 16
"""A rendered text may have this many characters, plus so many per character of the conversation."""
MAX_REASON = 200
FIXED_DATE = (2024, 7, 26)
"""The date that `strftime_now` gives to templates. It is fixed so that the same data always give
the same tokens; Llama 3.1's template has it as its default."""


def _compiled(template: str, blocks: list[tuple[int, int]], written: list[str]) -> Any:
    """Compile the template in an environment like that of `transformers`
    (utils/chat_template_utils.py), without functions that give other text on each call.

    While it renders, the span of each generation block is appended to `blocks`; `written` must hold
    the parts of the text that it has given so far.
    """
    from datetime import datetime

    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag {% generation %}, which encloses replies."""

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
        "strftime_now": lambda form: datetime(*FIXED_DATE).strftime(form),
        "lipsum": drawn,
    }
    return environment.from_string(template)


Text = tuple[str, list[tuple[int, int]]]
"""The rendered text of one prefix, and the spans of its generation blocks."""


def _texts(
    parsed: Any,
    blocks: list[tuple[int, int]],
    written: list[str],
    variables: dict[str, Any],
    job: dict[str, Any],
) -> list[Text]:
    most = BASE_OUTPUT_CHARACTERS + OUTPUT_PER_INPUT_CHARACTER * _size(job)
    known = {"tools": None, "documents": None, **variables, **job["variables"]}
    texts = []
    for count, begins in job["prefixes"]:
        blocks.clear()
        written.clear()
        size = 0
        signal.setitimer(signal.ITIMER_PROF, MAX_CPU_SECONDS)
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
    """About how many characters a conversation has."""
    texts = [message.get("content") for message in job["messages"]]
    size = sum(len(text) for text in texts if isinstance(text, str))
    others = any(len(message) > 2 for message in job["messages"]) or job["variables"]
    return size + len(json.dumps(job)) if others else size


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"it needs more than {MAX_MEMORY_BYTES >> 20} MiB of memory"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 3] + "..."


def main() -> None:
    """Answer each line of stdin on stdout, until stdin ends."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))

    def answer(value: Any) -> None:
        print(json.dumps(value), flush=True)

    blocks: list[tuple[int, int]] = []
    written: list[str] = []
    settings = json.loads(sys.stdin.readline())
    signal.setitimer(signal.ITIMER_PROF, MAX_CPU_SECONDS)
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
