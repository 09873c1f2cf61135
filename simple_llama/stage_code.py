"""Finds the code of a stage: all modules of this project that it imports, directly or indirectly.

`python -m stages.code` writes a file with their hashes for each stage into data/code/, and each
stage depends on its file. So DVC reruns a stage only if a module that it imports has changed.
"""

import ast
import gc
import hashlib
import os
import symtable
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from os.path import isdir, isfile
from pathlib import Path
from typing import NamedTuple

from simple_llama.errors import InputError, one_line_errors
from simple_llama.process import dvc_process_id, terminate_with

EXEMPT_PATHS = (
    "simple_llama/errors.py",
    "simple_llama/params/pipeline.py",
    "simple_llama/params/process.py",
    "simple_llama/params/tracking.py",
    "simple_llama/process.py",
    "simple_llama/stage_code.py",
    "simple_llama/tracking/",
)
"""Code that cannot change the content of an out: it handles errors, locks, signals and MLflow, and
checks the params of the other stages."""
DATA_SUFFIXES = (".css", ".html", ".jinja", ".js", ".json")
"""Files beside a module that it may read."""
LISTINGS = Path("data/code")
"""The out of the stage `code`."""


@contextmanager
def as_stage(
    module: str, listings: Path = LISTINGS, listed_by: str = "dvc repro code"
) -> Iterator[None]:
    """The frame of each stage's main(): a user's mistake ends it in one line, and so does a listing
    of other code than that which runs; it ends with the DVC that started it.

    `dvc repro -s train` does not run the stage `code`, so DVC would keep the result of changed code
    under the listing of the code before. Without DVC nothing is kept, and nothing is compared.
    """
    if not gc.isenabled():  # stages/__init__.py
        gc.freeze()  # what is imported stays
        gc.enable()
    # a rank ends with its torchrun
    dvc = None if "LOCAL_RANK" in os.environ else dvc_process_id()
    with one_line_errors(), terminate_with(dvc):
        listing = listings / f"{module}.txt"
        if "DVC_STAGE" in os.environ and listing.is_file():
            _compare(listing, list_code(module), listed_by)
        yield


def _compare(listing: Path, code: str, listed_by: str) -> None:
    listed = listing.read_text(encoding="utf-8", errors="replace")
    lines = {*listed.splitlines()} ^ {*code.splitlines()}
    if changed := sorted({line.partition("  ")[2] for line in lines}):
        more = f" and {len(changed) - 1} more" if changed[1:] else ""
        raise InputError(
            f"{listing}: lists other code than this stage runs ({changed[0]}{more}), and DVC would "
            f"keep the result under it: wanted `dvc repro`, or `{listed_by}` before this stage"
        )


def list_code(entry: str) -> str:
    """One line `<SHA-256>  <path>` for each file that the module `entry` uses: modules, and other
    files of their packages, such as templates.

    The project is the current folder. Raises InputError where a module is missing or not Python.
    """
    start = Path(f"{_folder(entry)}.py")
    if not start.is_file():
        raise InputError(f"{start}: no such file, wanted the module of a stage")
    found: dict[Path, str] = {}
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path in found or path.as_posix().startswith(EXEMPT_PATHS):
            continue
        module = _read(path)
        found[path] = module.digest
        waiting += [file for node in module.imports for file in _imported(node, path)]
        waiting += [init for folder in path.parents if (init := folder / "__init__.py").is_file()]
    for folder in {path.parent for path in found}:
        found |= {
            other: _sha256(other.read_bytes())
            for other in folder.iterdir()
            # hidden ones are an editor's
            if other.suffix in DATA_SUFFIXES and other.name[0] != "." and other.is_file()
        }
    return "".join(f"{found[path]}  {path.as_posix()}\n" for path in sorted(found))


class _Module(NamedTuple):
    digest: str
    """SHA-256 of what Python executes."""
    imports: list[ast.Import | ast.ImportFrom]
    """At the top and inside functions."""


def _read(path: Path) -> _Module:
    try:
        return _parse(path.read_text(encoding="utf-8-sig"))
    except SyntaxError as error:
        raise InputError(f"{path}: line {error.lineno}: {error.msg}") from None
    except ValueError as error:  # not UTF-8, or a null byte
        raise InputError(f"{path}: not Python in UTF-8: {error}") from None


@cache  # train lists its code twice: when it starts, and for the key of its resume state
def _parse(source: str) -> _Module:
    nodes = _nodes(ast.parse(source))
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    return _Module(_sha256(_executed(source, nodes)), imports)


def _imported(node: ast.Import | ast.ImportFrom, path: Path) -> list[Path]:
    """The files of this project that a line of the module at `path` imports.

    Raises InputError where one is missing: the stage would find that out somewhere in the middle.
    """
    if isinstance(node, ast.Import):
        names, members = [alias.name for alias in node.names], []
    else:
        package = path.parts[: -node.level] if node.level else ()
        names = [".".join([*package, *([node.module] if node.module else [])])]
        members = [alias.name for alias in node.names]
    found = []
    for name in filter(_is_here, names):
        files = _files(name)
        missing = [] if files or isdir(_folder(name)) else [name]
        found += files
        for member in [] if missing else members:
            inner = f"{name}.{member}"
            below = _files(inner)
            if not below and not isdir(_folder(inner)) and not _bound(files, member):
                missing.append(inner)
            found += below
        # an installed package may have the name of a folder of data
        if missing and any(Path(name.partition(".")[0]).rglob("*.py")):
            raise InputError(
                f"{path}: line {node.lineno}: imports {missing[0]}, wanted a module of this project"
            )
    return found


def _is_here(module: str) -> bool:
    top = module.partition(".")[0]
    return bool(top) and (isdir(top) or isfile(f"{top}.py"))


def _folder(module: str) -> str:
    return module.replace(".", "/")


def _files(module: str) -> list[Path]:
    folder = _folder(module)
    return [Path(file) for file in (f"{folder}.py", f"{folder}/__init__.py") if isfile(file)]


def _bound(files: list[Path], name: str) -> bool:
    """Whether a module may have this name by itself. Of a package, its __init__.py must say it."""
    for file in files:
        if file.name != "__init__.py":
            return True
        names = symtable.symtable(file.read_text("utf-8-sig"), str(file), "exec").get_identifiers()
        if name in names or name == "*" or "__getattr__" in names:
            return True
    return False


def _executed(source: str, nodes: list[ast.AST]) -> bytes:
    """The source without docstrings, comments and empty lines: none of these changes a result."""
    lines = source.encode().split(b"\n")
    strings: dict[int, list[tuple[int, int]]] = {}
    docstrings: set[int] = set()
    for node in nodes:
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


def _nodes(tree: ast.Module) -> list[ast.AST]:
    """All but those within f-strings, whose places differ between Python's versions."""
    nodes: list[ast.AST] = [tree]
    for node in nodes:  # which grows
        if isinstance(node, ast.JoinedStr):
            continue
        for value in vars(node).values():  # twice as fast as ast.iter_child_nodes
            if isinstance(value, ast.AST):
                nodes.append(value)
            elif isinstance(value, list):
                nodes += [child for child in value if isinstance(child, ast.AST)]
    return nodes


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
