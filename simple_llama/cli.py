"""The `simple-llama` program and its commands.

Each command is a function: the first line of its docstring is its help, and its arguments are its
options. It imports the module that does the work only when it runs, because importing torch takes
seconds.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simple_llama.errors import one_line_errors


@dataclass(frozen=True)
class Option:
    """The arguments of argparse's `add_argument`."""

    name: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Command:
    run: Callable[..., None]
    options: tuple[Option, ...]

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def help(self) -> str:
        return (self.run.__doc__ or "").splitlines()[0]


COMMANDS: list[Command] = []
"""All commands, in the order of `simple-llama --help`."""


def option(name: str, **settings: Any) -> Option:
    return Option(name, settings)


def command(*options: Option) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register the decorated function as a command with these options."""

    def register(run: Callable[..., None]) -> Callable[..., None]:
        COMMANDS.append(Command(run, options))
        return run

    return register


MODEL = option(
    "--model", default="models/sft", metavar="DIR", help="a model folder (default: models/sft)"
)
PROMPT_FORMAT = option(
    "--prompt-format",
    default="auto",
    choices=("auto", "template", "simple_llama", "chatml", "llama3", "zephyr", "alpaca"),
    help="the prompt format (default: auto, which the model's folder determines)",
)
TOOLS = option(
    "--tools",
    metavar="FILE",
    help="JSON file of functions that the model may call; calls are shown, not executed",
)
DEVICE = option("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:N or mps")
MAX_TOKENS = option(
    "--max-tokens",
    type=int,
    default=256,
    metavar="N",
    help="maximum tokens of a reply (default: 256)",
)
TOP_P = option(
    "--top-p",
    type=float,
    default=1.0,
    metavar="P",
    help="sample from the most likely tokens whose probabilities add up to P (default: 1)",
)
SEED = option("--seed", type=int, metavar="N", help="makes sampling repeatable")


def temperature(default: float) -> Option:
    return option(
        "--temperature",
        type=float,
        default=default,
        metavar="T",
        help="0: always the most likely token; 1: the model's own probabilities "
        f"(default: {default:g})",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="simple-llama", description="Supervised fine-tuning of LLaMA-style models."
    )
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for each in COMMANDS:
        sub = subparsers.add_parser(each.name, help=each.help, description=each.help)
        sub.set_defaults(run=each.run)
        for one in each.options:
            sub.add_argument(one.name, **one.settings)
    arguments = vars(parser.parse_args())
    run: Callable[..., None] = arguments.pop("run")
    with one_line_errors():
        run(**arguments)


@command(
    option(
        "--memory",
        metavar="SIZE",
        help="plan for a device with this memory (24GB or 24GiB) instead of this machine's: a GPU, "
        "unless params.yaml names a device",
    )
)
def check(memory: str | None) -> None:
    """Check params.yaml, the paths it names and the device, before anything heavy runs."""
    from simple_llama.check import check

    print(check(memory))


@command(
    option("--split", choices=("train", "val"), help="default: train; with --id: both"),
    option(
        "-n", type=int, default=3, metavar="N", help="examples from the split's start (default: 3)"
    ),
    option("--id", metavar="ID", help="show only this example, such as 'chat.jsonl[17]'"),
    option("--html", metavar="FILE", help="write an HTML page instead of printing"),
    option(
        "--loss",
        nargs="?",
        const="models/sft",
        metavar="DIR",
        help="also show a model's loss for each trained token, in nats (default: models/sft)",
    ),
)
def inspect(split: str | None, n: int, id: str | None, html: str | None, loss: str | None) -> None:
    """Show examples as they are trained on, and which rows were rejected or dropped, and why."""
    from simple_llama.inspection.inspect import inspect

    print(inspect(split, n, id, html, loss))


@command()
def summary() -> None:
    """Print what the last run made and how good it is."""
    from simple_llama.evaluation.summary import summary

    print(summary())


@command()
def verify() -> None:
    """Check on the last run's data and model that batching, caching and saving change nothing."""
    from simple_llama.evaluation.verify import verify

    verify()


@command(
    option(
        "names",
        nargs="*",
        metavar="EXP",
        help="an experiment, branch, tag or commit, or 'workspace' for the working tree; "
        "without any: workspace and all experiments of HEAD",
    ),
    option("--out", default="comparison.html", metavar="FILE", help="the HTML page to write"),
    option(
        "--markdown",
        action="store_true",
        help="print a table of differences from the first run instead, for a pull request",
    ),
)
def report(names: list[str], out: str, markdown: bool) -> None:
    """Compare several runs on one page."""
    if markdown:
        from simple_llama.evaluation.comparison.markdown import compare as table

        print(table(names))
        return
    from simple_llama.evaluation.comparison.page import compare

    print(compare(names, out))


@command(option("file", metavar="FILE", help="YAML: ranges of params, and the number of trials"))
def sweep(file: str) -> None:
    """Search params: an Optuna study whose trials are DVC experiments."""
    from simple_llama.sweep.study import sweep

    print(sweep(file))


@command(option("run_id", metavar="RUN_ID", help="MLflow's id of the run"))
def reproduce(run_id: str) -> None:
    """Print the git and dvc commands that reproduce an MLflow run in a new folder."""
    from simple_llama.tracking.reproduce import commands

    print("\n".join(commands(run_id)))


@command(
    MODEL,
    PROMPT_FORMAT,
    option("--system", metavar="TEXT", help="system prompt (default: the model's own)"),
    TOOLS,
    temperature(0.7),
    TOP_P,
    MAX_TOKENS,
    SEED,
    DEVICE,
    option(
        "--compare",
        nargs="?",
        const="",
        metavar="DIR",
        help="also show this model's replies, side by side (default: model_path of params.yaml)",
    ),
)
def chat(
    model: str,
    prompt_format: str,
    system: str | None,
    tools: str | None,
    compare: str | None,
    device: str,
    **sampling: Any,
) -> None:
    """Chat with a model in the terminal."""
    from simple_llama.inference.chat import chat
    from simple_llama.inference.replies import GenerationSettings

    settings = GenerationSettings(**sampling)
    chat(
        model=model,
        prompt_format=prompt_format,
        system=system,
        tools=tools,
        compare=compare,
        device=device,
        settings=settings,
    )


@command(
    MODEL,
    PROMPT_FORMAT,
    option(
        "--prompt",
        dest="prompts",
        action="append",
        default=[],
        metavar="TEXT",
        help="a prompt to answer; may be repeated",
    ),
    option(
        "--file",
        metavar="FILE",
        help="prompts: conversations in any format of prepare, or a .txt with one prompt per line",
    ),
    TOOLS,
    option("--out", metavar="FILE", help="JSONL file to write (default: standard output)"),
    option(
        "--batch-size", type=int, default=32, metavar="N", help="prompts per batch (default: 32)"
    ),
    temperature(0.0),
    TOP_P,
    MAX_TOKENS,
    SEED,
    DEVICE,
)
def generate(
    model: str,
    prompt_format: str,
    prompts: list[str],
    file: str | None,
    tools: str | None,
    out: str | None,
    batch_size: int,
    device: str,
    **sampling: Any,
) -> None:
    """Answer prompts, or a file of them, in batches."""
    from simple_llama.inference.batch import generate_replies
    from simple_llama.inference.replies import GenerationSettings

    generate_replies(
        model=model,
        prompt_format=prompt_format,
        prompts=prompts,
        file=file,
        tools=tools,
        out=out,
        batch_size=batch_size,
        device=device,
        settings=GenerationSettings(**sampling),
    )


@command(
    MODEL,
    PROMPT_FORMAT,
    option("--data", metavar="FILE", help="conversations in any format of prepare"),
    option(
        "--tasks",
        metavar="A,B",
        help="benchmarks of lm-evaluation-harness; the base model is scored too",
    ),
    option("--include", metavar="DIR", help="a folder of additional tasks, as YAML files"),
    option("--limit", type=int, metavar="N", help="examples per task (default: all)"),
    option("--chat-template", action="store_true", help="ask each question in a user turn"),
    option("--out", metavar="FILE", help="write the report as JSON"),
    DEVICE,
)
def evaluate(
    model: str,
    prompt_format: str,
    data: str | None,
    tasks: str | None,
    out: str | None,
    device: str,
    **asked: Any,
) -> None:
    """Score a model on a file (loss, accuracy, exact match) or on public benchmarks."""
    if data is not None and tasks is None and not any(asked.values()):
        from simple_llama.evaluation.one_model import evaluate_file

        print(evaluate_file(model, prompt_format, data, out, device))
    elif tasks is not None and data is None and prompt_format == "auto":
        from simple_llama.evaluation.tasks import TaskSettings, evaluate_tasks

        names = [name.strip() for name in tasks.split(",") if name.strip()]
        print(evaluate_tasks(model, TaskSettings(tasks=names, device=device, **asked), out))
    else:
        from simple_llama.errors import InputError

        raise InputError(
            "evaluate: wanted --data FILE, with --prompt-format if need be, or --tasks A,B, with "
            "--include, --limit or --chat-template"
        )


@command(
    option("folder", metavar="DIR", help="a new or empty folder"),
    MODEL,
    option("--dtype", choices=("float32", "bfloat16", "float16"), default="float32"),
)
def export(folder: str, model: str, dtype: str) -> None:
    """Write a model folder that can be a base model, here or in another program."""
    from simple_llama.inference.export import export

    print(export(folder=folder, model=model, dtype=dtype))


@command()
def relocate() -> None:
    """Correct the paths of artifacts in the MLflow store after the checkout was moved."""
    from simple_llama.tracking.relocate import relocate

    changed = relocate()
    for place, count in changed.items():
        print(f"{count} paths led to {place}; now they lead to this repository's mlruns")
    if not changed:
        print("nothing to change: all artifacts are where the store says")


if __name__ == "__main__":
    main()
