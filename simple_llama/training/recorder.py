"""What is kept of a training while it runs: curves, samples, models, the resume state."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError

from simple_llama.data.batches import Plan
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.files import atomic_path, write_json
from simple_llama.model.decoder import Decoder
from simple_llama.model.weights import write_safetensors
from simple_llama.process import warn
from simple_llama.training.console import Console, describe_micro_batches
from simple_llama.training.curves import Curves
from simple_llama.training.preflight import Preflight
from simple_llama.training.resume import DamagedState, ResumeFolder, WorldSizeChanged
from simple_llama.training.snapshot_files import read_snapshot, write_tensors
from simple_llama.training.state import Diverged, Progress, Snapshot, StepRecord, TrainingData

METRICS = {
    "val": {"loss": "val/loss"},
    "interval": {"loss": "val/interval_loss"},
    "train": {name: f"train/{name}" for name in ("loss", "lr", "grad_norm", "tokens_per_second")},
}
"""By curve, its columns and their metrics in the tracker. MLflow makes a section of each prefix,
above metrics without one: the curves stand above the scores."""


class Tracker(Protocol):
    """Where a Recorder sends metrics, tags and samples, such as a tracking.Run."""

    def log(
        self, step: int, metrics: Mapping[str, float], timestamp: int | None = None
    ) -> None: ...
    def tag(self, tags: Mapping[str, str]) -> None: ...
    def log_table(self, rows: Sequence[Mapping[str, Any]], file: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class ResumeState:
    """What an interrupted training left."""

    snapshot: Snapshot
    curves: Curves
    samples: list[dict[str, Any]]
    resumed: list[int]
    """The steps after which it was continued before."""


def load_resume_state(folder: ResumeFolder) -> ResumeState | None:
    """The state to continue from. One that is damaged is removed, with a warning.

    Raises WorldSizeChanged where another number of ranks left it.
    """
    try:
        loaded = folder.load()
        if loaded is None:
            folder.clear()
            return None
        path, about = loaded
        state = ResumeState(
            snapshot=read_snapshot(Progress(**about["progress"]), path, folder.ranks),
            curves=Curves(about["curves"]),
            samples=about["samples"],
            resumed=about["resumed"],
        )
    except WorldSizeChanged:
        raise
    except (DamagedState, SafetensorError, KeyError, TypeError, ValueError) as error:
        warn(f"the resume state is damaged, training starts from the beginning: {error}")
        folder.remove()
        return None
    return state


class Recorder(Console):
    """A Console that keeps the curves and samples, saves the models and the resume state, and
    tells the tracker.

    The tracker hears of a step only once a resume state holds it: a step that is computed again
    after a kill is not logged twice. save: writes what is trained of a model as a folder.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        save: Callable[[Decoder, Path], None],
        tracker: Tracker,
        folder: ResumeFolder,
        ckpt_epochs: int,
        state: ResumeState | None,
    ) -> None:
        super().__init__(tokenizer.decode)
        self.save, self.tracker = save, tracker
        self.folder, self.ckpt_epochs = folder, ckpt_epochs
        self.curves = state.curves if state else Curves()
        self.samples = state.samples if state else []
        self.resumed = [*state.resumed, state.snapshot.progress.step] if state else []
        self.sent = dict.fromkeys([*METRICS, "samples"], 0)
        self.saving_seconds = 0.0
        self.saved_step = self.resumed[-1] if self.resumed else 0

    def on_train_begin(self, plan: Plan, progress: Progress) -> None:
        super().on_train_begin(plan, progress)
        self.tracker.tag({"steps_planned": str(plan.steps)})
        if self.resumed:
            self.tracker.tag({"resumed_after_steps": ", ".join(map(str, self.resumed))})
            # what the killed process had not sent yet; the rest is known by its timestamps
            self.send_metrics()

    def on_preflight(self, preflight: Preflight) -> None:
        super().on_preflight(preflight)
        self.tracker.tag(
            {
                "preflight.peak_memory_gb": f"{preflight.peak_memory / 1e9:.2f}",
                "preflight.computes": describe_micro_batches(preflight),
            }
        )

    def on_out_of_memory(self, micro_batch_tokens: int) -> None:
        super().on_out_of_memory(micro_batch_tokens)
        self.tracker.tag({"micro_batch_tokens_lowered_to": str(micro_batch_tokens)})

    def on_optimizer_step(self, record: StepRecord) -> None:
        super().on_optimizer_step(record)
        self.curves.add(
            "train",
            step=record.step,
            epoch=record.epoch,
            loss=record.loss,
            lr=record.lr,
            grad_norm=record.grad_norm,
            tokens_per_second=record.tokens / record.seconds,
            timestamp=_now(),
        )

    def on_validation(self, step: int, loss: float, examples: int, *, full: bool) -> None:
        super().on_validation(step, loss, examples, full=full)
        self.curves.add("val" if full else "interval", step=step, loss=loss, timestamp=_now())

    def on_samples(
        self, step: int, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]
    ) -> None:
        super().on_samples(step, prompts, replies)
        self.samples += [
            {"step": step, "prompt": self.decode(prompt), "reply": self.decode(reply)}
            for prompt, reply in zip(prompts, replies, strict=True)
        ]

    def on_improvement(self, step: int, model: Decoder) -> None:
        self.save(model, self.folder.best_path(step))

    def on_epoch_end(self, epoch: int, model: Decoder) -> None:
        if self.ckpt_epochs and epoch % self.ckpt_epochs == 0:
            self.save(model, self.folder.epoch_path(epoch))

    def on_step_end(self, snapshot: Callable[[], Snapshot], *, epoch_ended: bool) -> None:
        if not epoch_ended and not self.folder.is_due():
            self.folder.skip_save()
            return
        started = time.perf_counter()
        now = snapshot()
        about = {
            "progress": dataclasses.asdict(now.progress),
            "curves": self.curves.values,
            "samples": self.samples,
            "resumed": self.resumed,
        }
        self.folder.save(now.tensors, about, step=now.progress.step, best=now.progress.best_step)
        self.saving_seconds += time.perf_counter() - started
        self.saved_step = now.progress.step
        self.send_metrics()

    def report_interruption(self) -> None:
        """Say from where the same command will continue."""
        start = f"continues after step {self.saved_step:,}" if self.saved_step else "starts afresh"
        warn(f"training stops; the same command {start}", "note")

    def send_metrics(self) -> None:
        """Tell the tracker what it has not heard yet from this process."""
        for curve, names in METRICS.items():
            rows = self.curves.rows[curve]
            for row in rows[self.sent[curve] :]:
                metrics = {name: row[column] for column, name in names.items()}
                self.tracker.log(int(row["step"]), metrics, int(row["timestamp"]))
            self.sent[curve] = len(rows)
        if len(self.samples) > self.sent["samples"]:
            self.tracker.log_table(self.samples, "samples/during_training.json")
            self.sent["samples"] = len(self.samples)


def _now() -> int:
    return int(time.time() * 1000)


def save_diverged(error: Diverged, data: TrainingData, folder: ResumeFolder) -> Path:
    """Keep what a training diverged on in a folder of its own, and remove the resume state: from
    there it would only diverge again. The other ranks are sent the path, and write their part."""
    kept = folder.folder.with_name(f"diverged-{folder.folder.name}")
    progress = dataclasses.asdict(error.snapshot.progress)
    about = {
        "step": error.step,
        "reason": error.what,
        "examples": error.examples.tolist(),
        "rows_of_train_jsonl_from_0": data.train.rows[error.examples].tolist(),
        "progress": {
            k: v if v is None or math.isfinite(v) else str(v) for k, v in progress.items()
        },
    }
    batches = {
        f"{i}.{name}": getattr(batch, name)
        for i, batch in enumerate(error.batches)
        for name in ("ids", "positions", "targets", "offsets")
        if getattr(batch, name) is not None
    }
    with atomic_path(kept) as temporary:
        temporary.mkdir()
        write_json(temporary / "diverged.json", about)
        write_safetensors(batches, temporary / "batch.safetensors")
        alone = folder.ranks.world_size == 1
        place = folder.ranks.broadcast(temporary / "state.safetensors" if alone else temporary)
        write_tensors(error.snapshot.tensors, place, folder.ranks)
    folder.remove()
    return kept
