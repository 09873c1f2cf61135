"""How good the last run is, in words: `simple-llama summary`, and the line that evaluate prints."""

from collections.abc import Mapping
from typing import Any

from simple_llama.files import read_json
from simple_llama.pages.numbers import epochs, things
from simple_llama.params.evaluate import EvaluateParams
from simple_llama.params.reading import Params


def summary() -> str:
    """What the last run made and how good it is. Raises InputError where there was none."""
    result = read_json("reports/eval.json")
    train = read_json("reports/train.json")
    where = "validation" if Params().section(EvaluateParams).on_validation_split else "held-out"
    lines = [
        ("model", "models/sft/ (Hugging Face layout)"),
        ("trained", f"{things(train['steps'], 'step')}, {epochs(train['epochs'])}"),
        (f"{where} loss", f"{result['base_val_loss']:.4f} -> {result['val_loss']:.4f}"),
    ]
    if result["exact_match"] is not None:
        change = f"{result['base_exact_match']:.1%} -> {result['exact_match']:.1%}"
        lines.append(("exact match", f"{change} of {result['exact_match_examples']:,} replies"))
    if rounding := rounding_in_words(result):
        lines.append(("base in 4 bits", rounding))
    lines += [
        ("report", "models/report.html"),
        ("runs", "make ui, then open the address that it prints"),
    ]
    return "\n".join(f"{name:<16} {text}" for name, text in lines)


def scores_in_a_line(scores: Mapping[str, Any], params: EvaluateParams) -> str:
    """Write reports/eval.json as 'validation loss 3.21 -> 0.45, exact match 0.0% -> 71.2% of 9'."""
    where = "validation" if params.on_validation_split else "held-out"
    line = f"{where} loss {scores['base_val_loss']:.4f} -> {scores['val_loss']:.4f}"
    if scores["exact_match"] is not None:
        line += (
            f", exact match {scores['base_exact_match']:.1%} -> {scores['exact_match']:.1%} "
            f"of {scores['exact_match_examples']:,}"
        )
    if rounding := rounding_in_words(scores):
        line += f"; base in 4 bits: {rounding}"
    return line


def rounding_in_words(scores: Mapping[str, Any]) -> str:
    """Say what holding the base in 4 bits cost; nothing where it was not, or not measured."""
    if "rounded_base_val_loss" not in scores:
        return ""
    rounded, original = scores["rounded_base_val_loss"], scores["base_val_loss"]
    return f"validation loss {rounded:.4f}, of the original {original:.4f}"
