"""How a command ends: for a mistake that the user can fix, one line, exit code 1, no traceback."""

import io
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class InputError(ValueError):
    """An input of the user is wrong. The message says where, what was found and what was wanted."""


class Terminated(SystemExit):
    """SIGTERM arrived."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@contextmanager
def terminated_by_signal() -> Iterator[None]:
    """Let SIGTERM raise Terminated within the block, so that cleanup runs; by default SIGTERM ends
    the process at once. It has no effect outside the main thread, which alone may set handlers."""
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
    """Turn an InputError, or an OSError about a file, into one line on stderr and exit code 1.

    Ctrl-C exits with 130, SIGTERM with 143, output that nobody reads (`| head`) silently with 141.
    Characters that the terminal cannot encode are escaped.
    """
    _print_anything()
    try:
        with terminated_by_signal():
            yield
            sys.stdout.flush()  # here a pipe without a reader is still an error of ours
    except InputError as error:
        sys.exit(f"error: {printable(' '.join(str(error).split()))}")
    except KeyboardInterrupt:
        sys.exit(130)
    except RuntimeError as error:
        # torch.OutOfMemoryError, compared by name because not every stage imports torch
        if type(error).__name__ != "OutOfMemoryError":
            raise
        sys.exit("error: the device ran out of memory: a smaller micro_batch_tokens needs less")
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.exit(141)
        if error.filename is None and error.strerror is None:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        sys.exit(printable(f"error: {where}{error.strerror}"))


def _nobody_reads() -> bool:
    """Whether what is printed goes to a pipe without a reader; then it goes nowhere from here on,
    because Python, too, tries to flush it when it ends."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def _print_anything() -> None:
    """Print characters that are not in the terminal's encoding as escapes such as \\u4e2d."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def printable(line: str) -> str:
    """The line with control characters escaped: file names and data may contain sequences that a
    terminal would execute."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
