"""A path → the files of conversations behind it, opened and unpacked."""

import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from simple_llama.errors import InputError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
GZIP_MAGIC = b"\x1f\x8b"
MAX_RATIO = 200
"""How many times its packed size a file may unpack to. Conversations reach 3 to 50, a gzip bomb
1000 (https://www.zlib.net/zlib_tech.html)."""
FREE_BYTES = 2**20
"""So much may come out of any packed file."""
BUFFER_BYTES = 2**16
CACHED = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")
"""Where a cache of DVC 3, wherever it is, has a file: by the MD5 of what is in it."""


def find_files(path: str | Path) -> list[Path]:
    """The file itself, or the sorted files of a folder, by SUFFIXES. Raises InputError."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.exists():
        raise InputError(f"{path}: no such file or folder, wanted conversations as JSON or JSONL")
    if not path.is_dir():
        raise InputError(f"{path}: neither a file nor a folder")
    found = []
    for folder, folders, names in os.walk(path, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(folder, name)
            for name in names
            if name.endswith(SUFFIXES) and not name.startswith(".")
        ]
    for file in found:
        check_inside(file, path)
    if not found:
        raise InputError(f"{path}: no *.json, *.jsonl, *.json.gz or *.jsonl.gz in this folder")
    return sorted(found)


def _refuse(error: OSError) -> None:
    """os.walk passes over a folder it cannot list, and its rows would be missed."""
    raise error


def check_inside(file: Path, folder: Path) -> None:
    """Raises InputError where it is no file, or a link that leads out of the folder and not into
    DVC's cache, where `cache.type symlink` keeps the files of a folder that DVC tracks."""
    if not file.is_file():
        raise InputError(f"{file}: not a file")
    place = file.resolve()
    if not place.is_relative_to(folder.resolve()) and not CACHED.search(place.as_posix()):
        raise InputError(f"{file}: a link that leads out of {folder}; put the file itself there")


def name_in(file: Path, path: str | Path) -> str:
    """What a file is called in ids: its path in the folder it was found in."""
    name = file.name if file == Path(path) else file.relative_to(path).as_posix()
    # a name that is no UTF-8 could not be written into a record
    return os.fsencode(name).decode("utf-8", "replace")


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, unpacked where it is packed with gzip, whatever its name says.

    Unpacking goes along with reading. Raises InputError where the packed data is damaged or
    unpacks to more than MAX_RATIO times its size.
    """
    with open(path, "rb") as file:
        packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        file.seek(0)
        if packed:
            with io.BufferedReader(_Unpacked(path, file), BUFFER_BYTES) as unpacked:
                yield unpacked
        else:
            yield file


class _Unpacked(io.RawIOBase):
    """What comes out of a gzip file, counted."""

    def __init__(self, path: Path, packed: BinaryIO) -> None:
        self.path, self.packed = path, packed
        self.unpacking = gzip.GzipFile(fileobj=packed)
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer)
        try:
            data = self.unpacking.read(len(view))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{self.path}: damaged gzip data: {error}") from None
        self.count += len(data)
        if self.count > max(FREE_BYTES, MAX_RATIO * self.packed.tell()):
            raise InputError(
                f"{self.path}: unpacks to over {MAX_RATIO} times its size, as no conversations do"
            )
        view[: len(data)] = data
        return len(data)
