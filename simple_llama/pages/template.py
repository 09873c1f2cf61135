"""Filling a page's template: what comes from outside is escaped, and stays text."""

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from simple_llama.pages import numbers

# Control characters are not valid HTML and lone surrogates cannot be written as UTF-8. The others
# show as nothing, or change the direction of what stands around them (https://trojansource.codes).
# Joiners and single marks of direction are left: scripts are written with them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u200b\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(value: Any) -> Any:
    """Spell out what cannot be seen or written in a text, as <U+202E>, and unify its line ends."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    lines = value.replace("\r\n", "\n").replace("\r", "\n")
    return _INVISIBLE.sub(lambda found: f"<U+{ord(found[0]):04X}>", lines)


def fill(template: str, **values: Any) -> str:
    """Render a template, named by its path below simple_llama/, with these values.

    Raises jinja2.UndefinedError where the template asks for a value that is not among them.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("simple_llama", "."),
        autoescape=True,
        finalize=printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shared = (
        "count",
        "decimal",
        "epochs",
        "finite",
        "number",
        "percent",
        "share",
        "things",
        "MISSING",
    )
    environment.globals.update({name: getattr(numbers, name) for name in shared})
    return environment
