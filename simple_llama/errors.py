"""What ends a command: one line for what a user can mend, exit code 1, no traceback."""

import io
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class InputError(ValueError):
    """Something a user gave is wrong; the message says what, where, what was found and wanted."""


class Terminated(SystemExit):
    """SIGTERM arrived."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@contextmanager
def terminated_by_signal() -> Iterator[None]:
    """Within the block SIGTERM raises Terminated: the default leaves half of everything behind and
    says nothing to anyone. Only a main thread can have it so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an InputError, or a file the system refuses, into one line on stderr and exit code 1;
    Ctrl-C and SIGTERM end the block too, with 130 and 143. No character is an error to print."""
    _print_anything()
    try:
        with terminated_by_signal():
            yield
    except InputError as error:
        sys.exit(f"error: {printable(' '.join(str(error).split()))}")
    except KeyboardInterrupt:
        sys.exit(130)
    except RuntimeError as error:
        # torch.OutOfMemoryError, by name: not every stage imports torch
        if type(error).__name__ != "OutOfMemoryError":
            raise
        sys.exit("error: the device ran out of memory: a smaller micro_batch_tokens needs less")
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        sys.exit(printable(f"error: {where}{error.strerror}"))


def _print_anything() -> None:
    """A character that the terminal's encoding lacks is printed as its escape, such as \\u4e2d."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def printable(line: str) -> str:
    """Without what a terminal would obey: file names and data may hold escape sequences."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
