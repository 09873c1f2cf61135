"""Finds the code of a stage: all modules of this project that it imports, directly or indirectly.

`python -m stages.code` writes a file with their hashes for each stage into data/code/, and each
stage depends on its file. So DVC reruns a stage only if a module that it imports has changed.
"""

import ast
import hashlib
from pathlib import Path

from simple_llama.errors import InputError

EXEMPT_PATHS = (
    "simple_llama/params.py",
    "simple_llama/strict_yaml.py",
    "simple_llama/errors.py",
    "simple_llama/process.py",
    "simple_llama/stage_code.py",
    "simple_llama/tracking/",
)
"""Code that cannot change the content of an out. Reading params.yaml gives the values in it or an
error; the other modules handle errors, locks, signals and MLflow."""
DATA_SUFFIXES = (".css", ".html", ".jinja", ".js", ".json")
"""Files beside a module that it may read."""


def list_code(entry: str) -> str:
    """One line `<SHA-256>  <path>` for each file that the module `entry` uses: modules, and other
    files of their packages, such as templates.

    The project is the current folder. Raises InputError where a module is missing or not Python.
    """
    start = _file(entry)
    if not start.is_file():
        raise InputError(f"{start}: no such file, wanted the module of a stage")
    found: dict[Path, str] = {}
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in found or path.as_posix().startswith(EXEMPT_PATHS):
            continue
        source = path.read_text(encoding="utf-8")
        try:
            tree = ast.parse(source)
        except SyntaxError as error:
            raise InputError(f"{path}: line {error.lineno}: {error.msg}") from None
        found[path] = _sha256(_executed(source, tree).encode())
        found |= {
            other: _sha256(other.read_bytes())
            for other in path.parent.iterdir()
            if other.suffix in DATA_SUFFIXES
        }
        waiting += _imported(tree)
        waiting += [init for folder in path.parents if (init := folder / "__init__.py").is_file()]
    return "".join(f"{found[path]}  {path.as_posix()}\n" for path in sorted(found))


def _file(module: str) -> Path:
    return Path(*module.split(".")).with_suffix(".py")


def _imported(tree: ast.Module) -> list[Path]:
    """The files of this project that a module imports, at the top or inside functions."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return [path for path in map(_file, names) if path.is_file()]


def _executed(source: str, tree: ast.Module) -> str:
    """The source without docstrings, empty lines and comment lines, which do not change results."""
    lines = source.split("\n")
    dropped: set[int] = set()
    kept: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and _is_text(node.value):
            first, last = node.lineno - 1, node.end_lineno or node.lineno
            around = lines[first].encode()[: node.col_offset]
            around += lines[last - 1].encode()[node.end_col_offset :]
            dropped.update(range(first, last) if not around.strip() else ())
        elif isinstance(node, ast.Constant | ast.JoinedStr):
            # lines that begin inside a string: '#' is not a comment there
            kept.update(range(node.lineno, node.end_lineno or node.lineno))
    return "\n".join(
        line
        for number, line in enumerate(lines)
        if number not in dropped
        and (number in kept or not (line.strip() == "" or line.lstrip().startswith("#")))
    )


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
