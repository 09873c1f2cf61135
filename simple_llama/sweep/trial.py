"""One trial: a DVC experiment in a folder of its own, watched while it trains."""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from simple_llama.errors import InputError
from simple_llama.evaluation.comparison.runs import find_runs
from simple_llama.sweep.ranges import Value
from simple_llama.training.console import STARTED_LINE, VALIDATED_LINE

LINES_OF_A_FAILURE = 3


class TrialFailed(Exception):
    """The experiment ended with an error; the message is its last lines."""


class TrialPruned(Exception):
    """should_continue said no."""


def run_trial(
    name: str, values: Mapping[str, Value], should_continue: Callable[[int, float], bool]
) -> float:
    """Run an experiment and return its validation loss in nats per supervised token.

    should_continue: called at the end of each epoch with its number and validation loss. Raises
    TrialPruned where it returns False, TrialFailed where the experiment fails.
    """
    settings = [
        part for key, value in values.items() for part in ("-S", f"{key}={as_override(value)}")
    ]
    last: list[str] = []
    steps_an_epoch = 1
    with _running("dvc", "exp", "run", "--temp", "--force", "--name", name, *settings) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = [*last, line.strip()][-LINES_OF_A_FAILURE:]
            if found := STARTED_LINE.match(line):
                steps_an_epoch = _integer(found["steps_an_epoch"])
            elif found := VALIDATED_LINE.match(line):
                epoch = -(-_integer(found["step"]) // steps_an_epoch)
                if not should_continue(epoch, float(found["loss"])):
                    raise TrialPruned
        code = process.wait()
    if code:
        raise TrialFailed(" / ".join(filter(None, last)) or f"exit code {code}")
    ([run], _) = find_runs([name])
    loss = run.scores.get("val_loss")
    if not isinstance(loss, float):
        raise InputError(f"{name}: the experiment has no val_loss in reports/eval.json")
    return loss


def _integer(digits: str) -> int:
    return int(digits.replace(",", ""))


def as_override(value: Value) -> str:
    """Write a value for `dvc exp run -S`, which Hydra reads: what is more than a word is quoted
    (https://hydra.cc/docs/advanced/override_grammar/basic/#quoted-values)."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and not re.fullmatch(r"[\w./+-]+", value):
        # a backslash stands for itself, but before a quote
        escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
        escaped = re.sub(r"(\\+)\Z", r"\1\1", escaped)
        return f"'{escaped}'"
    return str(value)


@contextmanager
def _running(*command: str) -> Iterator[subprocess.Popen[str]]:
    """Start a process; where it still runs when the block ends, interrupt it as Ctrl-C does."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            assert process.stdout is not None
            print(process.stdout.read(), end="", flush=True)
            process.wait()
