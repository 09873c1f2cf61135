"""`python -m stages.prepare`: ft_json_path → data/prepared/*.jsonl and reports/prepare.json."""

from functools import partial
from typing import Any

from tqdm import tqdm

from simple_llama.data.mixture import MIXTURE_FILE
from simple_llama.data.preparation import prepare
from simple_llama.data.sources import unread_files
from simple_llama.errors import printable
from simple_llama.files import write_json
from simple_llama.params.prepare import PrepareParams
from simple_llama.params.reading import Params
from simple_llama.stage_code import as_stage


def main() -> None:
    with as_stage("stages.prepare"):
        params = Params().section(PrepareParams)
        # shows progress on a terminal if it takes longer than 3 seconds
        watch = partial(tqdm, desc="prepare", unit=" examples", delay=3, disable=None)
        report = prepare(params, "data/prepared", watch)
        write_json("reports/prepare.json", report)
        print(summary(params, report))


def summary(params: PrepareParams, report: dict[str, Any]) -> str:
    """The lines printed for the user: counts, and why rows were rejected."""
    formats = ", ".join(
        f"{name} ({files:,} files)" if files > 1 else name
        for name, files in report["files_by_format"].items()
    )
    lines = [f"{params.ft_json_path}: {report['examples']:,} examples, {formats}"]
    rows = {name: report[name] for name in ("train", "val", "duplicates", "rejected")}
    rows |= {f"  {reason}": times for reason, times in report["rejected_by_reason"].items()}
    by_weight = {"left out": report["left_out"], "repeated": report["repeated"]}
    rows |= {f"{what} by {MIXTURE_FILE}": times for what, times in by_weight.items() if times}
    if report["untrained"]:
        rows["excluded by own flags"] = report["untrained"]
    if "preference" in report["files_by_format"]:
        lines.append("  preference pairs: the chosen reply is trained, the rejected one is dropped")
    if unread := [name for name in unread_files(params.ft_json_path) if name != MIXTURE_FILE]:
        more = f" and {len(unread) - 5} more" if len(unread) > 5 else ""
        lines.append(f"  files that are not read: {printable(', '.join(unread[:5]))}{more}")
    if dropped := report["dropped_keys"]:
        named = ", ".join(f"{key} ({times:,} rows)" for key, times in list(dropped.items())[:10])
        more = f" and {len(dropped) - 10} more" if len(dropped) > 10 else ""
        lines.append(f"  dropped keys, which no format reads: {named}{more}")
    lines += [f"  {name:<26}{number:>12,}" for name, number in rows.items()]
    like = report["val_prompts_like_train"]
    lines.append(
        f"  at most {like:.1%} of val prompts equal a train prompt but for digits and names"
    )
    if report["rejected"]:
        lines.append("  each rejected row, with its reason: data/prepared/rejected.jsonl")
    if report["duplicates"]:
        lines.append("  each duplicate: data/prepared/duplicates.jsonl")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
