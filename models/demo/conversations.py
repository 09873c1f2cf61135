"""Writes the demo's conversations: `python -m models.demo.conversations` → data/raw/demo_sft.json.

Each phrasing of a task is combined with only some entities, and the validation split has other
combinations. To answer these, a model must have learnt the fact or the operation independently of
the wording. A prompt has exactly one right answer, so replies are compared word for word.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from models.demo.tasks import TASKS, Task

PATH = Path("data/raw/demo_sft.json")

# System prompt → form of the answer. CUSTOM stands for the default prompt, which is most frequent.
STYLES = {
    "CUSTOM": "{answer}",
    "You are a patient teacher.": "{answer}",
    "Be brief and correct.": "{answer}",
    "Greet the user first.": "Hello! {answer}",
}
ONE_WORD_STYLES = {
    "Answer with one word.": "{word}",
    "Answer in JSON.": '{{"answer": "{word}"}}',
}
WEIGHTS = {"CUSTOM": 6, "Answer with one word.": 2, "Answer in JSON.": 2}


def conversations(seed: int = 0) -> list[dict[str, Any]]:
    """All conversations in random order. No two begin with the same prompt."""
    rng = Random(seed)
    asked: set[str] = set()
    written = [conversation(task, rng, asked) for task in TASKS for _ in range(task.count)]
    rng.shuffle(written)
    return written


def conversation(task: Task, rng: Random, asked: set[str]) -> dict[str, Any]:
    """One conversation of a task. Its first prompt is new, and is added to `asked`."""
    for _ in range(1000):
        slots = task.draw(rng)
        users = [rng.choice(phrasings.split(" | ")).format(**slots) for phrasings, _ in task.turns]
        if users[0].casefold() not in asked:
            asked.add(users[0].casefold())
            break
    else:
        raise AssertionError(f"too few different prompts for {task.count} of {task.turns[0]}")

    styles = STYLES | (ONE_WORD_STYLES if task.word else {})
    system = rng.choices(list(styles), [WEIGHTS.get(style, 1) for style in styles])[0]
    answers = [answer.format(**slots) for _, answer in task.turns]
    answers[-1] = styles[system].format(answer=answers[-1], word=task.word.format(**slots))
    return {"Category": task.category, "Template": [system], "User": users, "Assistant": answers}


def rendered(seed: int = 0) -> str:
    """The content of the file: a JSON array with one conversation per line."""
    lines = [json.dumps(row) for row in conversations(seed)]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def main() -> None:
    text = rendered()
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text(text, encoding="ascii", newline="\n")
    counts = Counter(row["Category"] for row in json.loads(text))
    listed = ", ".join(f"{category} {count}" for category, count in sorted(counts.items()))
    print(f"{PATH}: {counts.total()} conversations ({listed})", file=sys.stderr)


if __name__ == "__main__":
    main()
