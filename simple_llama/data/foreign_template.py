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
    template: str, messages: Sequence[Mapping[str, str]], tokens: Mapping[str, str]
) -> str | None:
    """The inference prompt that the template makes, or None where it makes none in time.

    tokens: what the template calls bos_token, eos_token and so on.
    """
    variables = {**tokens, "messages": list(messages), "add_generation_prompt": True}
    try:
        done = subprocess.run(
            [sys.executable, "-I", __file__],
            input=json.dumps({"template": template, "variables": variables}).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=10 * SECONDS,
            check=True,
        )
        text: Any = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError):
        return None
    return text if isinstance(text, str) else None


def _render(template: str, variables: dict[str, Any]) -> str:
    from jinja2 import nodes
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
    return environment.from_string(template).render(tools=None, documents=None, **variables)


def main() -> None:
    """What is read from stdin, rendered to stdout."""
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    json.dump(_render(**json.load(sys.stdin))[:MAX_CHARACTERS], sys.stdout)


if __name__ == "__main__":
    main()
