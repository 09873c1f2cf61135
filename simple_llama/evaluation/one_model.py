"""`simple-llama evaluate`: any model scored on any file, beside the pipeline."""

import dataclasses
from typing import Any

from simple_llama.data.prompt import ChatTokenizer
from simple_llama.evaluation.held_out import HeldOut
from simple_llama.evaluation.metrics import evaluate, summarise
from simple_llama.files import write_json
from simple_llama.model.checkpoint import check_fits
from simple_llama.model.device import pick_device
from simple_llama.model.folder import load_model
from simple_llama.model.weights import weight_files
from simple_llama.params.evaluate import EvaluateParams
from simple_llama.params.reading import Params
from simple_llama.pipeline import check_outside_outs


def evaluate_file(model: str, prompt_format: str, data: str, out: str | None, device: str) -> str:
    """Score a model folder on a file and return the report as text.

    The tokenizer is the folder's own, the evaluation settings those of params.yaml. out: a file
    that gets the report as JSON; nothing else is written. Raises InputError.
    """
    if out is not None:
        check_outside_outs(out)
    params = Params().section(EvaluateParams)
    weight_files(model)  # an adapter's folder, say, before its tokenizer is missed
    tokenizer = ChatTokenizer.from_folder(model, prompt_format)
    size = tokenizer.vocab_size
    config = check_fits(model, size, 1, added_tokens=tokenizer.added_tokens)
    params = dataclasses.replace(
        params,
        device=device,
        system_prompt=tokenizer.system_prompt,
        max_seq_len=min(params.max_seq_len, config.max_length),
    )
    held_out = HeldOut.read(data, tokenizer, params)
    loaded = load_model(
        model,
        pick_device(device),
        fused=params.use_flash_attention,
        vocab_size=size,
        trained_vocab_size=tokenizer.file_vocab_size,
    )
    evaluation = evaluate(loaded, held_out.tokens, tokenizer, params)
    report = {
        "model": model,
        **summarise(evaluation, None, held_out.categories, data),
        "left_out": held_out.left_out,
    }
    if out is not None:
        write_json(out, report)
    return _table(report)


def _table(report: dict[str, Any]) -> str:
    lines = [f"{report['model']} on {report['data']}"]
    rows = {key: value for key, value in report.items() if key not in ("model", "data")}
    by_category = rows.pop("by_category")
    lines += [f"  {key:<24}{_shown(value):>12}" for key, value in rows.items()]
    for name, row in by_category.items():
        exact = f", exact match {_shown(row['exact_match'])} of {row['exact_match_examples']:,}"
        lines.append(f"  {name}: {row['examples']:,} examples, loss {row['val_loss']:.4f}{exact}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"
