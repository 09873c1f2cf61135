"""The stages of the pipeline. Each reads its params, calls the library once and writes its outs."""

import gc
import os
import sys
from types import TracebackType

EXIT_CODE_OF_CTRL_C = 130


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Exit without a traceback at Ctrl-C while a stage is still importing torch, which takes
    seconds. Later, `one_line_errors` does this."""
    if issubclass(kind, KeyboardInterrupt):
        os._exit(EXIT_CODE_OF_CTRL_C)
    sys.__excepthook__(kind, error, trace)


sys.excepthook = _end

if sys.argv[0] == "-m":  # this is the process of a stage
    # imports leave no garbage, and each search for some would walk all that torch has made: 0.3 s
    gc.disable()  # until `as_stage`
