"""A path → the files of conversations behind it, opened and unpacked."""

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

NAMES = re.compile(
    r".*(\.(json|jsonl|ndjson|jsonlines|csv|tsv)(\.(gz|xz|zst))?|\.(parquet|arrow))", re.IGNORECASE
)
"""What files of conversations in a folder are called."""
BESIDE_ARROW = ("dataset_info.json", "dataset_dict.json", "state.json")
"""What `datasets` saves about the data."""
PACKED = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""First bytes of a packed file → how it is packed."""
ARCHIVES = {b"PK\3\4": "zip", b"7z\xbc\xaf": "7z", b"Rar!": "rar", b"BZh": "bzip2"}
MAX_RATIO = 200
"""How many times its packed size a file may unpack to. Conversations reach 3 to 50, a gzip bomb
1000 (https://www.zlib.net/zlib_tech.html)."""
FREE_BYTES = 2**20
"""So much may come out of any packed file."""
BUFFER_BYTES = 2**16
CACHED = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")
"""Where a cache of DVC 3, wherever it is, has a file: by the MD5 of what is in it."""


def find_files(path: str | Path) -> list[Path]:
    """The file itself, or the sorted files of a folder, by NAMES. Raises InputError."""
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


def others(path: str | Path) -> list[str]:
    """The files of a folder that are not read and may be conversations."""
    folder = Path(path)
    files = _files(folder) if folder.is_dir() else []
    unread = (file for file in files if not _is_data(file) and file.name not in BESIDE_ARROW)
    return [name_in(file, folder) for file in unread]


def _files(path: Path) -> list[Path]:
    """All but the hidden ones, sorted."""
    found = []
    for folder, folders, names in os.walk(path, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _is_data(file: Path) -> bool:
    if file.name in BESIDE_ARROW:
        return not any(file.parent.glob("*.arrow")) and not any(file.parent.glob("*/*.arrow"))
    return NAMES.fullmatch(file.name) is not None


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
    """A file's bytes, unpacked where it is packed with gzip, xz or zstd, whatever its name says.

    Unpacking goes along with reading. Raises InputError where the packed data is damaged or
    unpacks to more than MAX_RATIO times its size.
    """
    with open(path, "rb") as file:
        head = file.read(8)
        file.seek(0)
        for magic, kind in ARCHIVES.items():
            if head.startswith(magic):
                raise InputError(f"{path}: a {kind} archive, which is not read: unpack it")
        packing = next((kind for magic, kind in PACKED.items() if head.startswith(magic)), None)
        if packing is None:
            yield file
            return
        with io.BufferedReader(_Unpacked(path, file, packing), BUFFER_BYTES) as unpacked:
            yield unpacked


def check_ratio(path: Path, unpacked: int, packed: int) -> None:
    """Raises InputError where so many bytes come out of so few."""
    if unpacked > max(FREE_BYTES, MAX_RATIO * packed):
        raise InputError(
            f"{path}: unpacks to over {MAX_RATIO} times its size, as no conversations do"
        )


def _unpacking(packed: BinaryIO, packing: str) -> Any:
    """A file whose `read` gives what was packed."""
    if packing == "gzip":
        return gzip.GzipFile(fileobj=packed)
    if packing == "xz":
        return lzma.LZMAFile(packed)
    import pyarrow as pa  # Python has it from 3.14 on

    return pa.CompressedInputStream(packed, "zstd")


class _Unpacked(io.RawIOBase):
    """What comes out of a packed file, counted."""

    def __init__(self, path: Path, packed: BinaryIO, packing: str) -> None:
        self.path, self.packed, self.packing = path, packed, packing
        self.unpacking = _unpacking(packed, packing)
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer)
        try:
            data = self.unpacking.read(len(view))
        except (EOFError, zlib.error, lzma.LZMAError, OSError, ValueError) as error:
            raise InputError(f"{self.path}: damaged {self.packing} data: {error}") from None
        self.count += len(data)
        check_ratio(self.path, self.count, self.packed.tell())
        view[: len(data)] = data
        return len(data)
