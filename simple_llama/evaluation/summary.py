"""`simple-llama summary`: the last run in a few lines."""

from simple_llama.files import read_json
from simple_llama.params import EvaluateParams, Params


def summary() -> str:
    """What the last run made and how good it is. Raises InputError where there was none."""
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
    return "\n".join(f"{name:<16} {text}" for name, text in lines)
