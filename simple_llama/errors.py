"""What a user can mend: one line, exit code 1, no traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Something a user gave is wrong; the message says what, where, what was found and wanted."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an InputError, or a file the system refuses, into one line on stderr and exit code 1."""
    try:
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


def printable(line: str) -> str:
    """Without what a terminal would obey: file names and data may hold escape sequences."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
