"""Rendering a chat template that came with a tokenizer, a program by somebody unknown.

It runs in a child process, in Jinja's sandbox, with bounded time, memory and output: a sandbox
alone stops no template that loops for ever.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

SECONDS = 2
"""Of processor time."""
BYTES = 2**30
MAX_CHARACTERS = 2**16


def rendered(
    template: str,
    conversations: Sequence[Sequence[Mapping[str, str]]],
    tokens: Mapping[str, str],
) -> list[str | None]:
    """The inference prompts that the template makes, None for each that it refuses; for all, where
    they are not made in time.

    tokens: what the template calls bos_token, eos_token and so on.
    """
    variables = {**tokens, "add_generation_prompt": True}
    given = {
        "template": template,
        "conversations": list(map(list, conversations)),
        "variables": variables,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-I", __file__],
            input=json.dumps(given).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=10 * SECONDS,
            check=True,
        )
        texts: list[str | None] = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError):
        return [None] * len(conversations)
    return texts


def _render(template: str, conversations: list[Any], variables: dict[str, Any]) -> list[str | None]:
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The block in which `transformers` marks replies; here only what is in it counts."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise ValueError(message)

    # as `transformers` sets it up
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: form}
    parsed = environment.from_string(template)
    texts: list[str | None] = []
    for messages in conversations:
        try:
            text = parsed.render(tools=None, documents=None, messages=messages, **variables)
            texts.append(text[:MAX_CHARACTERS])
        except (TemplateError, TypeError, ValueError):
            texts.append(None)
    return texts


def main() -> None:
    """What is read from stdin, rendered to stdout."""
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    json.dump(_render(**json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
