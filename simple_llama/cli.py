"""The `simple-llama` command: check before a run, summary, report and verify after it."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from simple_llama.errors import InputError, one_line_errors
from simple_llama.files import read_json
from simple_llama.params import (
    BaseParams,
    EvaluateParams,
    ExecutionParams,
    Params,
    PrepareParams,
    TokenizeParams,
    TrainParams,
)

DEMO = Path("models/demo/base")
"""Made by a stage of its own, so it may be absent before the first run."""
DEMO_STAGE = Path("models/demo/dvc.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="simple-llama", description="Supervised fine-tuning of LLaMA-style models."
    )
    commands = parser.add_subparsers(title="commands", required=True)
    parsers = {}
    for command in (check, summary, verify, report, reproduce, relocate):
        sub = commands.add_parser(command.__name__, help=(command.__doc__ or "").splitlines()[0])
        sub.set_defaults(run=command)
        parsers[command.__name__] = sub
    parsers["report"].add_argument(
        "names",
        nargs="*",
        metavar="EXP",
        help="an experiment, branch, tag or commit, or 'workspace' for the working tree; "
        "without any: workspace and all experiments of HEAD",
    )
    parsers["report"].add_argument(
        "--out", default="comparison.html", metavar="FILE", help="the page"
    )
    parsers["reproduce"].add_argument("run_id", metavar="RUN_ID", help="MLflow's id of the run")
    arguments = vars(parser.parse_args())
    run: Callable[..., None] = arguments.pop("run")
    with one_line_errors():
        run(**arguments)


def check() -> None:
    """Check params.yaml, the paths it names and the device, before anything heavy runs."""
    params = Params()
    train = params.section(TrainParams)
    data = params.section(PrepareParams).ft_json_path
    _check_exists("ft_json_path", data)
    base = params.section(BaseParams).model_path
    tokens = params.section(TokenizeParams)
    demo = Path(base).is_relative_to(DEMO) and Path(tokens.tokenizer_path).is_relative_to(DEMO)
    if not demo:
        _check_base(base, tokens)
    evaluation = params.section(EvaluateParams)
    if not evaluation.on_validation_split:
        _check_exists("eval_json_path", evaluation.eval_json_path)
    if not demo and DEMO_STAGE.exists():
        print(
            "note: the demo's base model is not used. Without its stage, `dvc checkout`, "
            "`dvc pull` and `dvc exp apply` do not ask for it: "
            f"git rm {DEMO_STAGE} {DEMO_STAGE.with_suffix('.lock')}"
        )
    print(f"params.yaml: {len(params.values)} keys, all valid")
    print(f"data: {data}, base model: {base}")
    print(f"device: {_device(train)}")


def _check_exists(key: str, path: str) -> None:
    if not Path(path).exists():
        raise InputError(f"params.yaml: {key}: {path} does not exist")


def _check_base(base: str, params: TokenizeParams) -> None:
    """The tokenizer has its control tokens and the base model an embedding for each id."""
    from simple_llama.data.prompt import ChatTokenizer
    from simple_llama.model.folder import check_fits

    tokenizer = ChatTokenizer.from_file(params.tokenizer_path, system_prompt=params.system_prompt)
    check_fits(base, tokenizer.vocab_size, params.max_seq_len)


def _device(params: ExecutionParams) -> str:
    from simple_llama.model.device import describe, pick_device  # torch takes seconds to import

    return describe(pick_device(params.device), params.precision)


def summary() -> None:
    """Say what the last run made and how good it is."""
    result = read_json("reports/eval.json")
    train = read_json("reports/train.json")
    where = "validation" if Params().section(EvaluateParams).on_validation_split else "held-out"
    lines = [
        ("model", "models/sft/ (Hugging Face layout)"),
        ("trained", f"{train['steps']:,} steps, {train['epochs']:g} epochs"),
        (f"{where} loss", f"{result['base_val_loss']:.4f} -> {result['val_loss']:.4f}"),
    ]
    if result["exact_match"] is not None:
        change = f"{result['base_exact_match']:.1%} -> {result['exact_match']:.1%}"
        lines.append(("exact match", f"{change} of {result['exact_match_examples']:,} replies"))
    lines += [
        ("report", "models/report.html"),
        ("runs", "make ui, then open the address that it prints"),
    ]
    print("\n".join(f"{name:<16} {text}" for name, text in lines))


def report(names: Sequence[str], out: str) -> None:
    """Lay several runs side by side in one page."""
    from simple_llama.evaluation.comparison.page import compare

    print(compare(names, out))


def verify() -> None:
    """Measure on the last run's data and model that batching, caching and saving change nothing."""
    from simple_llama.evaluation.verify import checks, load  # torch takes seconds to import
    from simple_llama.model.device import describe, pick_device

    subject = load(Params())
    print(f"{subject.folder} on {describe(pick_device(subject.params.device), 'fp32')}", flush=True)
    done = []
    for result in checks(subject):
        print(result, flush=True)
        done.append(result)
    failed = [result.name for result in done if not result.holds]
    if failed:
        raise InputError(f"{len(failed)} of {len(done)} checks failed: {'; '.join(failed)}")


def reproduce(run_id: str) -> None:
    """Print the git and dvc commands that make an MLflow run again, in a folder of its own."""
    from simple_llama.tracking.reproduce import commands

    print("\n".join(commands(run_id)))


def relocate() -> None:
    """After the checkout was moved: point its MLflow store to where its artifacts are now."""
    from simple_llama.tracking.relocate import relocate as mend

    changed = mend()
    for place, count in changed.items():
        print(f"{count} paths led to {place}, which is gone; now they lead to this repository's")
    if not changed:
        print("nothing to change: all artifacts are where the store says")


if __name__ == "__main__":
    main()
