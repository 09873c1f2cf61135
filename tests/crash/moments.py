"""The moments of a training at which it can be killed, counted; one of them can be chosen.

Runs within the train stage. CRASH holds JSON: {"moment": "update", "number": 3, "victim": "group"}
kills at the third update, {..., "rank": "1"} that of one rank; {"counts": FILE} counts all moments
of a training that goes through.
"""

import atexit
import functools
import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

VICTIMS = ("stage", "group", "dvc")
"""The stage alone; DVC, its shell and the stage together; DVC alone, which leaves an orphan."""

_counts: Counter[str] = Counter()
_wanted: dict[str, Any] = {}


def hit(moment: str) -> None:
    """The moment has come: count it, and kill if it is the chosen one."""
    _counts[moment] += 1
    here = _wanted.get("rank") in (None, os.environ.get("RANK"))
    if here and (moment, _counts[moment]) == (_wanted.get("moment"), _wanted.get("number")):
        Path(_wanted["mark"]).write_text(json.dumps(_wanted))
        kill(_wanted["victim"])


def kill(victim: str) -> None:
    from simple_llama.process import dvc_process_id, main_root

    if victim == "group":
        os.killpg(os.getpgid(0), signal.SIGKILL)
    elif victim == "dvc":
        dvc = dvc_process_id()
        assert dvc is not None
        os.kill(dvc, signal.SIGKILL)
    elif victim == "job":  # what a cluster does: it tells the job's script, and waits
        os.kill(int(Path(_wanted["pid"]).read_text()), signal.SIGTERM)
        while True:  # signal.pause() would sleep through a signal that came just before it
            time.sleep(0.1)
    elif victim == "state":
        shutil.rmtree(main_root() / ".resume")
    else:
        number = signal.SIGINT if victim == "interrupt" else signal.SIGKILL
        os.kill(os.getpid(), number)


def arm(settings: str) -> None:
    """Put the moments into the code that the stage is about to run."""
    from simple_llama import files
    from simple_llama.tracking import Run
    from simple_llama.training import (
        gradients,
        loop,
        loss,
        optimizer,
        recorder,
        resume,
        snapshot_files,
    )

    _wanted.update(json.loads(settings))
    # as on a terminal: what a shell starts in the background ignores it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _around(gradients, "summed_loss", "micro-batch")
    _around(optimizer.AdamW, "step", "update")
    _around(loop, "generate", "sampling")
    _around(loop, "score", "validation")
    _replace(loss, "micro_batches", _between, "within a validation")
    _around(recorder.Recorder, "on_improvement", "saving a model")
    _around(recorder.Recorder, "on_epoch_end", "saving a checkpoint")
    _replace(snapshot_files, "write_safetensors", _half, "half a state file")
    _around(resume, "atomic_write", "state file without its description")
    _around(files, "copy_folder", "publishing a model")
    _around(files, "write_json", "publishing a report")
    _around(Run, "log_model", "sending the model")
    _around(os, "replace", "rename")
    _around(Run, "_end", "ending the run")
    _around(resume.ResumeFolder, "mark_published", "published")
    atexit.register(hit, "leaving")
    if "counts" in _wanted:
        atexit.register(lambda: Path(_wanted["counts"]).write_text(json.dumps(_counts)))


def _around(owner: Any, name: str, moment: str) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def counted(*args: Any, **kwargs: Any) -> Any:
        hit(f"before {moment}")
        result = original(*args, **kwargs)
        hit(f"after {moment}")
        return result

    setattr(owner, name, counted)


def _replace(owner: Any, name: str, wrapper: Callable[..., Any], moment: str) -> None:
    setattr(owner, name, wrapper(getattr(owner, name), moment))


def _between(original: Callable[..., Any], moment: str) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        for item in original(*args, **kwargs):
            yield item
            hit(moment)

    return counted


def _half(original: Callable[..., Any], moment: str) -> Callable[..., Any]:
    def torn(tensors: Any, path: Path) -> None:
        original(tensors, path)
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[: len(content) // 2])
        hit(moment)
        Path(path).write_bytes(content)

    return torn
