"""The `simple-llama` command: check before a run, summary after it."""

import argparse
from collections.abc import Callable
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


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="simple-llama", description="Supervised fine-tuning of LLaMA-style models."
    )
    commands = parser.add_subparsers(title="commands", required=True)
    for command in (check, summary):
        sub = commands.add_parser(command.__name__, help=(command.__doc__ or "").splitlines()[0])
        sub.set_defaults(run=command)
    run: Callable[[], None] = parser.parse_args().run
    with one_line_errors():
        run()


def check() -> None:
    """Check params.yaml, the paths it names and the device, before anything heavy runs."""
    params = Params()
    train = params.section(TrainParams)
    data = params.section(PrepareParams).ft_json_path
    _check_exists("ft_json_path", data)
    base = params.section(BaseParams).model_path
    tokens = params.section(TokenizeParams)
    if not (Path(base).is_relative_to(DEMO) and Path(tokens.tokenizer_path).is_relative_to(DEMO)):
        _check_base(base, tokens)
    evaluation = params.section(EvaluateParams)
    if not evaluation.on_validation_split:
        _check_exists("eval_json_path", evaluation.eval_json_path)
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


if __name__ == "__main__":
    main()
