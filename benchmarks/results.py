"""What a benchmark prints, kept in benchmarks/RESULTS.md with the machine and the versions."""

import contextlib
import importlib.metadata
import io
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

RESULTS = Path("benchmarks/RESULTS.md")
PACKAGES = ("torch", "tokenizers", "transformers", "trl", "datasets", "mlflow", "dvc")


@contextlib.contextmanager
def section(title: str, command: str) -> Iterator[None]:
    """Take the place of RESULTS.md's section of this title with what is printed meanwhile."""
    printed = io.StringIO()

    class Tee(io.TextIOBase):
        def write(self, text: str) -> int:
            printed.write(text)
            return sys.__stdout__.write(text) if sys.__stdout__ else len(text)

        def flush(self) -> None:
            if sys.__stdout__:
                sys.__stdout__.flush()

    with contextlib.redirect_stdout(Tee()):
        yield
    table = printed.getvalue().strip()
    replace(title, f"## {title}\n\n`{command}`; {machine()}\n\n```text\n{table}\n```\n")


def replace(title: str, text: str) -> None:
    """Put a section where the one of its title stands, or at the end."""
    head, *others = re.split(r"(?m)^(?=## )", RESULTS.read_text(encoding="utf-8"))
    sections = {section.splitlines()[0]: section for section in others}
    sections[f"## {title}"] = text
    parts = [part.strip() for part in (head, *sections.values())]
    RESULTS.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def machine() -> str:
    """The processor, its cores, and the versions of what is installed. How many threads computed is
    for the table to say: it may be measured in processes of its own."""
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{name} {version}" for name in PACKAGES if (version := installed(name))]
    return f"{_processor()}, {len(os.sched_getaffinity(0))} cores; {', '.join(versions)}"


def installed(package: str) -> str | None:
    """Its version."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """As Linux names it, with the kinds of arithmetic that matter here."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"model name\s*: (.*)", text)
    known = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if f" {flag} " in text]
    return " ".join([name[1] if name else platform.machine(), *known])
