"""Finds the files of conversations under a path, and opens and decompresses them."""

import gzip
import io
import lzma
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from simple_llama.errors import InputError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

DATA_FILE_NAME = re.compile(
    r".*(\.(json|jsonl|ndjson|jsonlines|csv|tsv)(\.(gz|xz|zst))?|\.(parquet|arrow))", re.IGNORECASE
)
ARROW_METADATA_FILES = ("dataset_info.json", "dataset_dict.json", "state.json")
"""Files that `datasets` saves beside Arrow files; they hold no conversations."""
COMPRESSION_MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""First bytes of a file → its compression."""
ARCHIVE_MAGIC = {b"PK\3\4": "zip", b"7z\xbc\xaf": "7z", b"Rar!": "rar", b"BZh": "bzip2"}
MAX_COMPRESSION_RATIO = 200
"""A file may decompress to at most this many times its size. Conversations reach 3 to 50, a gzip
bomb 1000 (https://www.zlib.net/zlib_tech.html)."""
UNCHECKED_BYTES = 2**20
"""Output up to this size is allowed whatever the ratio."""
BUFFER_BYTES = 2**16
DVC_CACHE_PATH = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")
"""How the path of a file in a DVC 3 cache ends: with the MD5 of its content."""


def find_files(path: str | Path) -> list[Path]:
    """The file itself, or the data files of a folder, sorted. Raises InputError."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.exists():
        raise InputError(f"{path}: no such file or folder, wanted conversations as JSON or JSONL")
    if not path.is_dir():
        raise InputError(f"{path}: neither a file nor a folder")
    files = _files(path)
    found = [file for file in files if _is_data(file)]
    for file in found:
        check_inside(file, path)
    if not found:
        others = f" (found {files[0].name})" if files else ""
        raise InputError(
            f"{path}: no file of conversations in this folder{others}, wanted JSON, JSONL, CSV, "
            "Parquet or Arrow"
        )
    return found


def unread_files(path: str | Path) -> list[str]:
    """Names of the files in a folder that find_files passes over: the user may have expected them
    to be read."""
    folder = Path(path)
    files = _files(folder) if folder.is_dir() else []
    unread = (
        file for file in files if not _is_data(file) and file.name not in ARROW_METADATA_FILES
    )
    return [name_in(file, folder) for file in unread]


def _files(path: Path) -> list[Path]:
    """All files below a folder except hidden ones, sorted."""
    found = []
    for folder, folders, names in os.walk(path, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _is_data(file: Path) -> bool:
    if file.name in ARROW_METADATA_FILES:
        return not any(file.parent.glob("*.arrow")) and not any(file.parent.glob("*/*.arrow"))
    return DATA_FILE_NAME.fullmatch(file.name) is not None


def _refuse(error: OSError) -> None:
    """By default os.walk skips a folder that it cannot list: its rows would silently be missing."""
    raise error


def check_inside(file: Path, folder: Path) -> None:
    """Raises InputError if `file` is not a file, or is a link that leads out of the folder. A link
    into DVC's cache is allowed: with `cache.type symlink` DVC replaces tracked files by links."""
    if not file.is_file():
        raise InputError(f"{file}: not a file")
    place = file.resolve()
    if not place.is_relative_to(folder.resolve()) and not DVC_CACHE_PATH.search(place.as_posix()):
        raise InputError(f"{file}: a link that leads out of {folder}; put the file itself there")


def name_in(file: Path, path: str | Path) -> str:
    """The name of a file in row ids: its path relative to the folder in which it was found."""
    name = file.name if file == Path(path) else file.relative_to(path).as_posix()
    # a name that is not UTF-8 could not be written as JSON
    return os.fsencode(name).decode("utf-8", "replace")


@contextmanager
def open_decompressed(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, decompressing gzip, xz and zstd as it is read.

    The first bytes tell the compression, not the name. Raises InputError where the compressed
    data is damaged or decompresses to more than MAX_COMPRESSION_RATIO times its size.
    """
    with open(path, "rb") as file:
        head = file.read(8)
        file.seek(0)
        for magic, kind in ARCHIVE_MAGIC.items():
            if head.startswith(magic):
                raise InputError(f"{path}: a {kind} archive, which is not read: unpack it")
        kinds = (kind for magic, kind in COMPRESSION_MAGIC.items() if head.startswith(magic))
        compression = next(kinds, None)
        if compression is None:
            yield file
            return
        with io.BufferedReader(_Decompressed(path, file, compression), BUFFER_BYTES) as content:
            yield content


def check_ratio(path: Path, unpacked: int, packed: int) -> None:
    """Raises InputError if `unpacked` bytes are too many for a file of `packed` bytes."""
    if unpacked > max(UNCHECKED_BYTES, MAX_COMPRESSION_RATIO * packed):
        raise InputError(
            f"{path}: unpacks to over {MAX_COMPRESSION_RATIO} times its size, "
            "as no conversations do"
        )


def _decompressor(packed: BinaryIO, compression: str) -> Any:
    """A file object whose `read` returns decompressed bytes."""
    if compression == "gzip":
        return gzip.GzipFile(fileobj=packed)
    if compression == "xz":
        return lzma.LZMAFile(packed)
    import pyarrow as pa  # Python's own module for zstd comes with 3.14

    return pa.CompressedInputStream(packed, "zstd")


class _Decompressed(io.RawIOBase):
    """A decompressed file that checks the compression ratio while it is read."""

    def __init__(self, path: Path, packed: BinaryIO, compression: str) -> None:
        self.path, self.packed, self.compression = path, packed, compression
        self.decompressor = _decompressor(packed, compression)
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer)
        try:
            data = self.decompressor.read(len(view))
        except (EOFError, zlib.error, lzma.LZMAError, OSError, ValueError) as error:
            raise InputError(f"{self.path}: damaged {self.compression} data: {error}") from None
        self.count += len(data)
        check_ratio(self.path, self.count, self.packed.tell())
        view[: len(data)] = data
        return len(data)
