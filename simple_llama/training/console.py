"""What a person sees of a training: a progress bar on a terminal, plain lines elsewhere."""

import re
from collections.abc import Callable, Sequence
from time import perf_counter

from tqdm import tqdm

from simple_llama.brief import brief, passes
from simple_llama.data.batches import Plan
from simple_llama.errors import printable
from simple_llama.model.decoder import Decoder
from simple_llama.process import warn
from simple_llama.training.preflight import Preflight
from simple_llama.training.state import Progress, Snapshot, StepRecord

LINE_SECONDS = 10.0
"""Seconds between two lines of progress where there is no terminal."""

STARTED_LINE = re.compile(r"training: .* (?P<steps_an_epoch>[\d,]+) steps an epoch")
VALIDATED_LINE = re.compile(r"step (?P<step>[\d,]+): validation loss (?P<loss>[\d.]+) over all ")
"""Lines that other programs find in a training's output."""


class Console:
    """A Callback that prints. `decode` turns token ids into text, for the samples."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self.decode = decode
        self.bar = tqdm(disable=True)
        self.tokens = 0
        self.seconds = 0.0
        self.val_loss = ""
        self.last_line = perf_counter()

    def on_train_begin(self, plan: Plan, progress: Progress) -> None:
        print(
            f"training: {plan.steps:,} steps of up to {plan.examples_per_step} examples, "
            f"{plan.steps_per_epoch:,} steps an epoch",
            flush=True,
        )
        if progress.step:
            print(f"continuing after step {progress.step:,}", flush=True)
        self.first, self.steps = progress.step, plan.steps
        self.bar = tqdm(
            total=plan.steps,
            initial=progress.step,
            unit="step",
            disable=None,
            dynamic_ncols=True,
        )

    def on_preflight(self, preflight: Preflight) -> None:
        self._say(describe_micro_batches(preflight))
        self._say(
            f"longest step (up to {preflight.longest:,} tokens): {preflight.seconds:.2f} s, "
            f"peak memory {preflight.peak_memory / 1e9:.2f} GB; "
            f"about {format_duration(preflight.seconds_left)} of training"
        )

    def on_out_of_memory(self, micro_batch_tokens: int) -> None:
        warn(
            f"out of memory: micro_batch_tokens is {micro_batch_tokens:,} from here on; "
            "the loss stays the same"
        )

    def on_optimizer_step(self, record: StepRecord) -> None:
        self.tokens += record.tokens
        self.seconds += record.seconds
        speed = self.tokens / self.seconds
        figures = (
            f"loss {record.loss:.3f}  lr {brief(record.lr, 3)}  {speed:,.0f} tok/s{self.val_loss}"
        )
        self.bar.set_postfix_str(figures, refresh=False)
        self.bar.update()
        now = perf_counter()
        if self.bar.disable and (now - self.last_line >= LINE_SECONDS or record.step == self.steps):
            left = self.seconds / (record.step - self.first) * (self.steps - record.step)
            print(
                f"step {record.step:,}/{self.steps:,}  epoch {passes(record.epoch)}  {figures}  "
                f"{format_duration(left)} left",
                flush=True,
            )
            self.last_line = now

    def on_rounded_base(self, loss: float, examples: int) -> None:
        self._say(
            f"base in 4 bits: validation loss {loss:.4f} over all {examples:,} examples; "
            "evaluate says what rounding cost"
        )

    def on_validation(self, step: int, loss: float, examples: int, *, full: bool) -> None:
        if step:
            self.val_loss = f"  val {loss:.3f}"
        if full:
            self._say(f"step {step:,}: validation loss {loss:.4f} over all {examples:,} examples")

    def on_samples(
        self, step: int, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]
    ) -> None:
        self._say(f"step {step:,}: samples")
        for prompt, reply in zip(prompts, replies, strict=True):
            question, answer = (" ".join(self.decode(ids).split()) for ids in (prompt, reply))
            self._say(printable(f"  {_end(question, 70)}  ->  {_start(answer, 100)}"))

    def on_improvement(self, step: int, model: Decoder) -> None:
        pass

    def on_epoch_end(self, epoch: int, model: Decoder) -> None:
        pass

    def on_step_end(self, snapshot: Callable[[], Snapshot], *, epoch_ended: bool) -> None:
        pass

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()

    def _say(self, line: str) -> None:
        if self.bar.disable:
            print(line, flush=True)
        else:
            self.bar.write(line)


def _end(text: str, most: int) -> str:
    """The last words of a text in one line; a word is cut only where there is no other."""
    kept = text[-most:]
    if len(text) > most and text[-most - 1] != " ":
        kept = kept.partition(" ")[2] or kept
    return f"...{kept.lstrip()}" if len(text) > most else text


def _start(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def format_duration(seconds: float) -> str:
    """'45 s', '12 min', '3.4 h'."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def describe_micro_batches(preflight: Preflight) -> str:
    """How steps are computed: 'micro-batches of up to 2,048 tokens, packed, not compiled'."""
    packed = "packed" if preflight.packed else "padded"
    compiled = "compiled" if preflight.compiled else "not compiled"
    return f"micro-batches of up to {preflight.micro_batch_tokens:,} tokens, {packed}, {compiled}"
