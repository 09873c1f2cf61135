"""The recipes of docs/recipes.md, carried out."""

import re
import shlex
from typing import Any

import yaml

from tests.support.project import ROOT, Project

BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def blocks(recipe: str) -> list[tuple[str, str]]:
    """Language and text of a recipe's fenced blocks, in order."""
    page = (ROOT / "docs/recipes.md").read_text()
    [text] = [part for part in page.split("\n## ") if part.startswith(f"{recipe}\n")]
    return BLOCK.findall(text)


def carry_out(project: Project, *recipes: str, max_seq_len: int = 256) -> str:
    """Change params.yaml as the recipes say, then run their commands; what these printed."""
    found = [block for recipe in recipes for block in blocks(recipe)]
    for language, text in found:
        if language == "yaml":
            values = yaml.safe_load(text)
            project.set(**{key: one if one != "" else '""' for key, one in values.items()})
    # what a tiny model has no room for
    project.set(max_seq_len=max_seq_len, lora_rank=min(4, project.param("lora_rank")))
    commands = [text for language, text in found if language == "console"]
    return "".join(_run(project, line) for text in commands for line in text.splitlines())


def _run(project: Project, line: str) -> str:
    words = shlex.split(line)
    return project.call(*words) if words[0] == "simple-llama" else project.run("sh", "-ec", line)


def sharegpt(row: dict[str, Any]) -> dict[str, Any]:
    turns = []
    for user, reply in zip(row["User"], row["Assistant"], strict=True):
        turns += [{"from": "human", "value": user}, {"from": "gpt", "value": reply}]
    return {"conversations": turns}
