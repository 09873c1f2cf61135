"""Reading runs from git or the working tree.

A run is params.yaml, reports/ and dvc.lock as a commit has them. Its name may be that of an
experiment, a branch, a tag or a commit.
"""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from simple_llama.brief import brief
from simple_llama.errors import InputError

WORKSPACE = "workspace"
"""Names the working tree."""

REPORTS = ("prepare", "tokenize", "train", "eval")
CURVES = ("train", "val", "interval")
FILES = (
    "params.yaml",
    "dvc.lock",
    *(f"reports/{name}.json" for name in REPORTS),
    *(f"reports/curves/{name}.csv" for name in CURVES),
)

_EXPERIMENT = re.compile(r"refs/exps/([0-9a-f]{2})/([0-9a-f]{38,})/(.+)")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is known of one run; what is absent is empty."""

    name: str
    """As the user wrote it."""
    origin: str
    """What the name stands for, with the short commit."""
    params: Mapping[str, str]
    """params.yaml as text, in which equal numbers are written alike."""
    evaluated: str
    """MD5 of the evaluated file, from dvc.lock."""
    made_with: Mapping[str, str]
    """Values in dvc.lock of the params that are others in params.yaml: those of the results."""
    prepare: Mapping[str, Any]
    tokenize: Mapping[str, Any]
    train: Mapping[str, Any]
    scores: Mapping[str, Any]
    """reports/eval.json; empty where the run is not finished."""
    curves: Mapping[str, Sequence[Mapping[str, float]]]
    """Rows of step, loss and more (train), or of step and loss (val, interval)."""

    @property
    def has_current_scores(self) -> bool:
        """Whether there are scores, and of these params."""
        return bool(self.scores) and not self.made_with


def find_runs(names: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Read the named runs (none: the working tree and all experiments of HEAD).

    Returns them in order without repetition, and notes on names that could mean more than one.
    Raises InputError where a name stands for nothing or a file of a run is broken.
    """
    head = _commit("HEAD")
    experiments = _experiments()
    if not names:
        own = (name for name, found in experiments.items() if any(e.base == head for e in found))
        names = [WORKSPACE, *own]
    runs, notes = [], []
    for name in dict.fromkeys(names):
        if name == WORKSPACE:
            runs.append(_read(name, _workspace_origin(head), _from_disk()))
            continue
        commit, origin, note = _resolve(name, head, experiments)
        notes += [note] if note else []
        runs.append(_read(name, f"{origin} {commit[:7]}", _from_commit(commit)))
    return runs, notes


@dataclass(frozen=True, kw_only=True)
class _Experiment:
    commit: str
    base: str
    """The commit it started from."""


def _git(*arguments: str, given: str = "") -> bytes | None:
    """What git prints, None where it fails."""
    done = subprocess.run(
        ["git", *arguments], input=given.encode(), capture_output=True, check=False
    )
    return done.stdout if done.returncode == 0 else None


def _commit(name: str) -> str | None:
    if not name or name.startswith("-") or "\0" in name:  # git would take it for an option
        return None
    found = _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    return found.decode().strip() if found else None


def _refs(*patterns: str, form: str = "%(refname:short)") -> list[str]:
    listed = _git("for-each-ref", "--sort=committerdate", f"--format={form}", *patterns)
    if listed is None:
        raise InputError(f"{Path.cwd()}: not in a git repository that git may read")
    return listed.decode(errors="replace").splitlines()


def _experiments() -> dict[str, list[_Experiment]]:
    """DVC's experiments by name, the newest of a name last."""
    found: dict[str, list[_Experiment]] = {}
    for line in _refs("refs/exps", form="%(objectname) %(refname)"):
        commit, ref = line.split(" ", 1)
        if match := _EXPERIMENT.fullmatch(ref):
            base = match[1] + match[2]
            found.setdefault(match[3], []).append(_Experiment(commit=commit, base=base))
    return found


def _resolve(
    name: str, head: str | None, experiments: Mapping[str, Sequence[_Experiment]]
) -> tuple[str, str, str]:
    """The commit of a name, what it stands for, and a note where it could mean more than one."""
    same, revision = experiments.get(name), _commit(name)
    if same is None:
        if revision is None:
            raise InputError(_unknown(name, experiments))
        heads, tags = _refs(f"refs/heads/{name}"), _refs(f"refs/tags/{name}")
        return revision, "tag" if tags else "branch" if heads else "commit", ""
    chosen = next((one for one in reversed(same) if one.base == head), same[-1])
    note = ""
    if len(same) > 1:
        which = "that of HEAD" if chosen.base == head else "the newest"
        note = f"{name}: {len(same)} experiments have this name, this is {which}"
    elif revision not in {None, chosen.commit}:
        note = f"{name}: an experiment and a git revision have this name, this is the experiment"
    return chosen.commit, "experiment", note


def _unknown(name: str, experiments: Iterable[str]) -> str:
    kinds = {
        "experiments": list(experiments),
        "branches": _refs("refs/heads"),
        "tags": _refs("refs/tags"),
    }
    listed = (
        f"{kind}: {', '.join(some[:20]) or 'none'}{' ...' if len(some) > 20 else ''}"
        for kind, some in kinds.items()
    )
    return f"{name!r}: no such experiment, branch, tag or commit; {'; '.join(listed)}"


def _workspace_origin(head: str | None) -> str:
    if head is None:
        return "working tree"
    changed = _git("status", "--porcelain", "--", *FILES)
    return f"{'changed since' if changed else 'same as'} {head[:7]}"


def _from_disk() -> dict[str, bytes]:
    return {name: Path(name).read_bytes() for name in FILES if Path(name).is_file()}


def _from_commit(commit: str) -> dict[str, bytes]:
    """Those of FILES that a commit has, below the current folder."""
    found: dict[str, bytes] = {}
    wanted = "".join(f"{commit}:./{name}\n" for name in FILES)
    rest = _git("cat-file", "--batch", given=wanted) or b""
    for name in FILES:
        header, _, rest = rest.partition(b"\n")
        if header and not header.endswith(b" missing"):
            size = int(header.split()[-1])
            found[name], rest = rest[:size], rest[size + 1 :]
    return found


def _read(name: str, origin: str, files: Mapping[str, bytes]) -> Run:
    """Parse the files of a run. Raises InputError naming the run and the file that is broken."""

    def parsed(file: str, parse: Callable[[bytes], Any]) -> Any:
        try:
            return parse(files[file]) if file in files else {}
        except (ValueError, TypeError, RecursionError, csv.Error, YAMLError) as error:
            raise InputError(f"{name}: {file}: {error}") from None

    if "params.yaml" not in files:
        raise InputError(f"{name} ({origin}): has no params.yaml, wanted a run of this pipeline")
    raw, lock = parsed("params.yaml", _yaml), parsed("dvc.lock", _yaml)
    params = {key: _plain(value) for key, value in raw.items() if isinstance(value, str)}
    reports = {report: parsed(f"reports/{report}.json", _json) for report in REPORTS}
    return Run(
        name=name,
        origin=origin,
        params=params,
        evaluated=_evaluated(lock, raw.get("eval_json_path")),
        made_with=_made_with(lock, params),
        prepare=reports["prepare"],
        tokenize=reports["tokenize"],
        train=reports["train"],
        scores=reports["eval"],
        curves={curve: parsed(f"reports/curves/{curve}.csv", _csv) or [] for curve in CURVES},
    )


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"got {type(value).__name__}, wanted keys with values")
    return value


def _json(content: bytes) -> dict[str, Any]:
    return _mapping(json.loads(content))


def _yaml(content: bytes) -> dict[str, Any]:
    """Every scalar as the text that stands there."""
    return _mapping(YAML(typ="base", pure=True).load(content))


def _csv(content: bytes) -> list[dict[str, float]]:
    rows = csv.DictReader(io.StringIO(content.decode(), newline=""))
    return [{key: float(value) for key, value in row.items()} for row in rows]


def _plain(text: str) -> str:
    """One way of writing each number: 1.5e-3 and 0.0015 are the same value."""
    return brief(float(text)) if _NUMBER.fullmatch(text) else text


def _evaluated(lock: Mapping[str, Any], path: object) -> str:
    try:
        deps = lock["stages"]["evaluate"]["deps"]
        hashes = [dep["md5"] for dep in deps if dep["path"] == path]
    except (KeyError, TypeError):
        return ""
    return hashes[0] if hashes and isinstance(hashes[0], str) else ""


def _made_with(lock: Mapping[str, Any], params: Mapping[str, str]) -> dict[str, str]:
    try:
        stages = [stage for stage in lock["stages"].values() if "params" in stage]
        used = [stage["params"]["params.yaml"].items() for stage in stages]
    except (KeyError, TypeError, AttributeError):
        return {}
    values = [(key, value) for some in used for key, value in some if isinstance(value, str)]
    return {
        key: _plain(value)
        for key, value in values
        if params.get(key, value) not in {value, _plain(value)}
    }


def differing_params(runs: Sequence[Run]) -> list[str]:
    """Names of the params in which the runs differ, in the order of params.yaml."""
    keys = dict.fromkeys(key for run in runs for key in run.params)
    return [key for key in keys if len({run.params.get(key) for run in runs}) > 1]
