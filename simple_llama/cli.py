"""The `simple-llama` command: what it can do, and where each part is done.

A command is a function here: its first docstring line is its help, its keyword arguments are its
options, and it imports what does the work, because torch takes seconds.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simple_llama.errors import one_line_errors


@dataclass(frozen=True)
class Option:
    """What `add_argument` of argparse takes."""

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
"""In the order of `simple-llama --help`."""


def option(name: str, **settings: Any) -> Option:
    return Option(name, settings)


def command(*options: Option) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command with these options."""

    def register(run: Callable[..., None]) -> Callable[..., None]:
        COMMANDS.append(Command(run, options))
        return run

    return register


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


@command()
def check() -> None:
    """Check params.yaml, the paths it names and the device, before anything heavy runs."""
    from simple_llama.check import check

    print(check())


@command(
    option("--split", choices=("train", "val"), help="default: train; with --id: both"),
    option(
        "-n", type=int, default=3, metavar="N", help="examples from the split's start (default: 3)"
    ),
    option("--id", metavar="ID", help="only this one, such as 'chat.jsonl[17]'"),
    option("--html", metavar="FILE", help="write a page instead"),
)
def inspect(split: str | None, n: int, id: str | None, html: str | None) -> None:
    """Show examples as they will be trained, and what was rejected or dropped, and why."""
    from simple_llama.inspection.inspect import inspect

    print(inspect(split, n, id, html))


@command()
def summary() -> None:
    """Say what the last run made and how good it is."""
    from simple_llama.evaluation.summary import summary

    print(summary())


@command()
def verify() -> None:
    """Measure on the last run's data and model that batching, caching and saving change nothing."""
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
    option("--out", default="comparison.html", metavar="FILE", help="the page"),
)
def report(names: list[str], out: str) -> None:
    """Lay several runs side by side in one page."""
    from simple_llama.evaluation.comparison.page import compare

    print(compare(names, out))


@command(option("run_id", metavar="RUN_ID", help="MLflow's id of the run"))
def reproduce(run_id: str) -> None:
    """Print the git and dvc commands that make an MLflow run again, in a folder of its own."""
    from simple_llama.tracking.reproduce import commands

    print("\n".join(commands(run_id)))


@command()
def relocate() -> None:
    """After the checkout was moved: point its MLflow store to where its artifacts are now."""
    from simple_llama.tracking.relocate import relocate

    changed = relocate()
    for place, count in changed.items():
        print(f"{count} paths led to {place}, which is gone; now they lead to this repository's")
    if not changed:
        print("nothing to change: all artifacts are where the store says")


if __name__ == "__main__":
    main()
