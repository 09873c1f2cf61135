"""`python -m stages.tokenize`: data/prepared → data/tokens and reports/tokenize.json."""

import json
from itertools import islice
from typing import Any

from tqdm import tqdm

from simple_llama.data.encoding import open_tokenizer, prepared_bytes, tokenize
from simple_llama.files import write_json
from simple_llama.params.reading import Params
from simple_llama.params.tokenize import TokenizeParams
from simple_llama.stage_code import as_stage

PREPARED = "data/prepared"
DROPPED = "data/tokens/dropped.jsonl"


def main() -> None:
    with as_stage("stages.tokenize"):
        params = Params().section(TokenizeParams)
        tokenizer = open_tokenizer(params)
        print(tokenizer.description, flush=True)
        # shows progress on a terminal if it takes longer than 3 seconds
        shown: dict[str, Any] = {"unit": "B", "unit_scale": True, "delay": 3, "disable": None}
        with tqdm(desc="tokenize", total=prepared_bytes(PREPARED), **shown) as bar:
            report = tokenize(params, tokenizer, PREPARED, "data/tokens", bar.update)
        write_json("reports/tokenize.json", report)
        print(summary(params, report))


def summary(params: TokenizeParams, report: dict[str, Any]) -> str:
    """The lines printed for the user: sizes, lengths, unknown tokens and dropped examples."""
    tokens, supervised = report["tokens"], report["supervised_tokens"]
    rows = {
        "train / val examples": f"{report['train_examples']:,} / {report['val_examples']:,}",
        "tokens": f"{tokens:,}",
        "supervised tokens": f"{supervised:,} ({supervised / tokens:.1%})",
        "unknown tokens": f"{report['unknown_token_rate']:.4%}",
        "length p50 / p95 / max": " / ".join(
            f"{report[f'length_{name}']:,}" for name in ("p50", "p95", "max")
        ),
        f"dropped, over {params.max_seq_len:,} tokens": f"{report['dropped_too_long']:,}",
    }
    if report["dropped_untrained"]:
        rows["dropped, no reply is trained"] = f"{report['dropped_untrained']:,}"
    for key, times in report.get("not_shown", {}).items():
        rows[f"not shown by the format: {key}"] = f"{times:,}"
    if report.get("dropped_refused"):
        rows["dropped, refused by the format"] = f"{report['dropped_refused']:,}"
    if report["dropped_too_long"]:
        rows["max_seq_len that keeps 99%"] = f"{report['length_p99_all']:,}"
    lines = [f"{params.tokenizer_path}, supervise {params.supervise}"]
    lines += [f"  {name:<32}{value}" for name, value in rows.items()]
    if report["dropped_too_long"] or report.get("dropped_refused"):
        with open(DROPPED, encoding="utf-8") as file:
            first = [json.loads(line) for line in islice(file, 3)]
        ids = ", ".join(
            f"{record['id']} ({record.get('reason') or format(record['length'], ',')})"
            for record in first
        )
        lines.append(f"  dropped first: {ids}; all in {DROPPED}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
