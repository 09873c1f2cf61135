"""Files and folders that are written whole or not at all: a temporary name, fsync, rename."""

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from simple_llama.errors import InputError

HEAD_BYTES = 256
"""Of a file's beginning, for describe_placeholder."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a pointer file begins (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md)."""
HTML = (b"<!doctype html", b"<html")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path, for a file or a folder, that takes the place of `path` when the block ends
    well, and vanishes if not.

    The temporary name is fixed, so a killed process leaves at most one behind, which the next
    writer overwrites; two writers of one path at once are for the caller to exclude.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    _remove(temporary)
    try:
        yield temporary
        for file in temporary.iterdir() if temporary.is_dir() else [temporary]:
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        if temporary.is_dir():
            _remove(path)  # a folder cannot be renamed over another
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            _remove(temporary)
        raise
    sync_folder(path.parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends well: see atomic_path."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        yield file


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder of files to the place of `target`, whole or not at all."""
    with atomic_path(target) as temporary:
        shutil.copytree(source, temporary)


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power failure, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: str | Path, value: Any) -> None:
    """Indented, in the value's own key order, atomically. Raises ValueError on NaN."""
    with atomic_write(path) as file:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
        file.write(f"{text}\n".encode())


def write_json_lines(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A line for each row, atomically."""
    with atomic_write(path) as file:
        for row in rows:
            file.write(f"{json.dumps(row, ensure_ascii=False)}\n".encode())


def describe_placeholder(head: bytes) -> str | None:
    """What a file with this beginning is instead of the real one (empty, a Git LFS pointer, an HTML
    page), and how to get that, for a message; None where it is none of these."""
    if not head:
        return "an empty file"
    if head.startswith(LFS_POINTER):
        return "a Git LFS pointer, not the file it points to: git lfs pull brings it"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[: len(HTML[0])].lower().startswith(HTML):
        return "an HTML page, not the file that was to be downloaded: download it again"
    return None


def read_head(path: str | Path) -> bytes:
    """A file's first bytes, for describe_placeholder."""
    with open(path, "rb") as file:
        return file.read(HEAD_BYTES)


def read_json(path: str | Path) -> Any:
    """Raises InputError naming the file where it is missing or not JSON."""
    try:
        content = Path(path).read_bytes()
        return json.loads(content)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        found = describe_placeholder(content[:HEAD_BYTES]) or error
        raise InputError(f"{path}: not JSON: {found}") from None


def write_csv(
    path: str | Path, rows: Sequence[Mapping[str, float]], columns: Sequence[str]
) -> None:
    """A table with a header, floats to 7 significant digits, atomically."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows([f"{row[column]:.7g}" for column in columns] for row in rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def read_csv(path: str | Path) -> list[dict[str, float]]:
    """What write_csv wrote."""
    with open(path, encoding="utf-8", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def digest(paths: Iterable[str | Path]) -> str:
    """SHA-256 of the files' contents, one after the other, in hexadecimal."""
    total = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def digest_tree(path: Path) -> str:
    """SHA-256, in hexadecimal, of a file's contents, or of the names and contents of all files in
    a folder and below it."""
    if not path.is_dir():
        return digest([path])
    files = sorted(file for file in path.rglob("*") if file.is_file())
    named = {file.relative_to(path).as_posix(): digest([file]) for file in files}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()
