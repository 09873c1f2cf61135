"""Finds the code of a stage: all modules of this project that it imports, directly or indirectly.

`python -m stages.code` writes a file with their hashes for each stage into data/code/, and each
stage depends on its file. So DVC reruns a stage only if a module that it imports has changed.
"""

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

from simple_llama.errors import InputError

EXEMPT_PATHS = (
    "simple_llama/errors.py",
    "simple_llama/process.py",
    "simple_llama/stage_code.py",
    "simple_llama/tracking/",
)
"""Code that cannot change the content of an out: it handles errors, locks, signals and MLflow."""
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
        try:
            source = path.read_text(encoding="utf-8-sig")
            tree = ast.parse(source)
        except SyntaxError as error:
            raise InputError(f"{path}: line {error.lineno}: {error.msg}") from None
        except ValueError as error:  # not UTF-8, or a null byte
            raise InputError(f"{path}: not Python in UTF-8: {error}") from None
        found[path] = _sha256(_executed(source, tree))
        found |= {
            other: _sha256(other.read_bytes())
            for other in path.parent.iterdir()
            if other.suffix in DATA_SUFFIXES and other.is_file()
        }
        waiting += _imported(tree, path)
        waiting += [init for folder in path.parents if (init := folder / "__init__.py").is_file()]
    return "".join(f"{found[path]}  {path.as_posix()}\n" for path in sorted(found))


def _file(module: str) -> Path:
    return Path(*module.split(".")).with_suffix(".py")


def _imported(tree: ast.Module, path: Path) -> list[Path]:
    """The files of this project that the module at `path` imports, at the top or inside
    functions."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            package = path.parts[: -node.level] if node.level else ()
            base = ".".join([*package, *([node.module] if node.module else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    files = [file for name in names if name for file in (_file(name), _file(f"{name}.__init__"))]
    return [file for file in files if file.is_file()]


def _executed(source: str, tree: ast.Module) -> bytes:
    """The source without docstrings, comments and empty lines: none of these changes a result."""
    lines = source.encode().split(b"\n")
    strings: dict[int, list[tuple[int, int]]] = {}
    docstrings: set[int] = set()
    for node in _nodes(tree):
        if _is_text(node):
            for number, begin, end in _spans(node, lines):
                strings.setdefault(number, []).append((begin, end))
        elif isinstance(node, ast.Expr) and _is_text(node.value):
            spans = [*_spans(node, lines)]
            if not any(
                lines[n][:begin].strip() or lines[n][end:].strip() for n, begin, end in spans
            ):
                docstrings.update(number for number, _, _ in spans)
    kept = []
    for number, line in enumerate(lines):
        found = strings.get(number, [])
        code = _without_comment(line, found)
        within = any(begin == 0 for begin, _ in found)  # an empty line of a string counts
        if number not in docstrings and (code.strip() or within):
            kept.append(code)
    return b"\n".join(kept)


def _nodes(tree: ast.Module) -> Iterator[ast.AST]:
    """All but those within f-strings, whose places differ between Python's versions."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.JoinedStr):
            waiting += ast.iter_child_nodes(node)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    )


def _spans(node: ast.AST, lines: list[bytes]) -> Iterator[tuple[int, int, int]]:
    """Of each line of a node: its index, and where in it the node begins and ends, in bytes."""
    first, last = node.lineno - 1, node.end_lineno - 1  # type: ignore[attr-defined]
    for number in range(first, last + 1):
        begin = node.col_offset if number == first else 0  # type: ignore[attr-defined]
        end = node.end_col_offset if number == last else len(lines[number])  # type: ignore[attr-defined]
        yield number, begin, end


def _without_comment(line: bytes, strings: list[tuple[int, int]]) -> bytes:
    place = line.find(b"#")
    while place >= 0 and any(begin <= place < end for begin, end in strings):
        place = line.find(b"#", place + 1)
    return line if place < 0 else line[:place].rstrip()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
