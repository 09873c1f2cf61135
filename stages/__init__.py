"""The pipeline's steps: each reads params, calls the library once, writes its outs."""

import os
import sys
from types import TracebackType

EXIT_CODE_OF_CTRL_C = 130


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C while a stage still imports torch, which takes seconds, needs no traceback; once it
    runs, `one_line_errors` sees to it."""
    if issubclass(kind, KeyboardInterrupt):
        os._exit(EXIT_CODE_OF_CTRL_C)
    sys.__excepthook__(kind, error, trace)


sys.excepthook = _end
