"""Kill trainings at seeded moments, continue them by the same command, compare what comes out.

A round is one training in a fresh copy of a small project, killed up to KILLS_A_ROUND times. It is
identical if the published model, the checkpoints, the curves and the report are byte for byte those
of a training that was never killed, and MLflow holds one FINISHED run with the same steps, each
once. A kill counts only if a process died by it and the stage really ran again afterwards.
"""

import json
import random
import shutil
import sqlite3
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.crash.moments import VICTIMS
from tests.support.project import ROOT, Project

KILLS_A_ROUND = 5
HOOK = str(ROOT / "tests/crash/hook")
COMMAND = ("dvc", "repro", "train")
RAN = "Running stage 'train'"
OUTS = (
    "models/sft",
    "models/checkpoints",
    "models/adapter",
    "reports/curves",
    "reports/train.json",
)


@dataclass
class Outcome:
    """What became of the kills."""

    kills: int = 0
    survived: int = 0
    """Followed by a start that went through or to the next kill."""
    identical: int = 0
    """In a training that ended as if nothing had happened."""
    resumed: int = 0
    """Continued from a saved step, not from the beginning."""
    moments: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Campaign:
    """A prepared project, and a training in it that was never killed."""

    def __init__(self, folder: Path, seed: int, **params: object) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        template = folder / "template"
        template.mkdir()
        self.template = Project.make(template)
        self.template.set(
            epochs=3,
            dropout=0.1,
            ckpt_epochs=2,
            sample_prompts=2,
            sample_max_tokens=8,
            resume_interval=0.05,
            **params,
        )
        self.template.run("dvc", "repro", "tokenize")
        whole = self.copy("whole")
        counts = folder / "counts.json"
        whole.run(*COMMAND, env=hook(counts=str(counts)))
        self.expected, _ = fingerprint(whole)
        self.counts: dict[str, int] = json.loads(counts.read_text())
        shutil.rmtree(whole.root)

    def run(self, kills: int) -> Outcome:
        """Rounds until so many kills have happened."""
        outcome = Outcome()
        for number in range(10 * kills):
            if outcome.kills >= kills:
                break
            self._round(number, min(KILLS_A_ROUND, kills - outcome.kills), outcome)
        return outcome

    def copy(self, name: str) -> Project:
        shutil.copytree(self.template.root, self.folder / name, symlinks=True)
        return Project(self.folder / name)

    def _round(self, number: int, most: int, outcome: Outcome) -> None:
        project = self.copy(f"round-{number}")
        killed: list[str] = []
        survived = 0
        for attempt in range(most):
            wanted = self._choose(attempt)
            mark = self.folder / "mark"
            mark.unlink(missing_ok=True)
            output = self.folder / "output"
            killing = hook(mark=str(mark), **wanted)
            code = project.start(*COMMAND, output=output, env=killing).wait()
            said = output.read_text(errors="replace")
            survived += bool(killed) and RAN in said
            if not mark.exists():
                break
            killed.append(f"{wanted['moment']} {wanted['number']}, {wanted['victim']}")
            if code == 0:
                outcome.faults.append(f"round {number}: {killed[-1]}: DVC took it for a success")
        else:
            said = project.run(*COMMAND)
            survived += bool(killed) and RAN in said
        found, resumed = fingerprint(project)
        same = [name for name in self.expected if found.get(name) != self.expected[name]]
        if same:
            outcome.faults.append(f"round {number} ({'; '.join(killed)}): {', '.join(same)} differ")
        outcome.kills += len(killed)
        outcome.survived += survived
        outcome.identical += 0 if same else len(killed)
        outcome.resumed += resumed
        outcome.moments += killed
        shutil.rmtree(project.root)

    def _choose(self, attempt: int) -> dict[str, Any]:
        """A moment that is likely to come: a continued training has fewer of each."""
        moments = sorted(self.counts)
        # so that the many moments of training are not outnumbered by the few of publishing
        weights = [min(self.counts[moment], 10) for moment in moments]
        (moment,) = self.random.choices(moments, weights)
        most = max(1, self.counts[moment] // (attempt + 1))
        return {
            "moment": moment,
            "number": self.random.randint(1, most),
            "victim": self.random.choice(VICTIMS),
        }


def hook(**settings: Any) -> dict[str, str]:
    return {"PYTHONPATH": HOOK, "CRASH": json.dumps(settings)}


def fingerprint(project: Project) -> tuple[dict[str, Any], int]:
    """What has to be the same, by name; and how often the training was continued."""
    root = project.root
    found: dict[str, Any] = {}
    for out in OUTS:
        path = root / out
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            content = file.read_bytes() if file.exists() else b"absent"
            content = content.replace(bytes(root.resolve()), b".")  # where an adapter's base is
            found[str(file.relative_to(root))] = sha256(content).hexdigest()
    queries = {
        "runs and their status": "SELECT status FROM runs",
        "models in the registry": "SELECT count(*) FROM model_versions",
        # tokens per second and the machine's load are never the same twice
        "metrics": "SELECT key, step, value FROM metrics WHERE key NOT LIKE 'system/%' "
        "AND key != 'train/tokens_per_second' ORDER BY key, step, value",
        "steps of tokens_per_second": "SELECT step FROM metrics "
        "WHERE key = 'train/tokens_per_second' ORDER BY step",
        "datasets": "SELECT count(*) FROM inputs",
    }
    with sqlite3.connect(root / "mlflow.db") as database:
        for name, query in queries.items():
            found[name] = database.execute(query).fetchall()
        resumed = database.execute("SELECT value FROM tags WHERE key = 'resumed_after_steps'")
        steps = [step for (value,) in resumed for step in value.split(", ")]
    return found, len(steps)
