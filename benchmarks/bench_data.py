"""Speed and memory of prepare and tokenize on a generated file of conversations.

    python -m benchmarks.bench_data --conversations 1000000

The tokenizer is SIMPLE_LLAMA_DATA's (a folder with seed_checkpoint/bpe_8k.json) where that variable
is set, else one of 8,192 entries trained on the generated text.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DEMO = Path("data/raw/demo_sft.json")
CHARACTERS = 900
"""Of text in a conversation, about; with its keys it takes 1 KB."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--conversations", type=int, default=100_000)
    number = parser.parse_args().conversations
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = work / "conversations.json"
        write_conversations(source, number)
        params = yaml.safe_load(Path("params.yaml").read_text())
        params |= {
            "ft_json_path": str(source),
            "tokenizer_path": str(find_tokenizer(work, source)),
            "max_seq_len": 1024,
        }
        (work / "params.yaml").write_text(yaml.safe_dump(params))
        print(
            f"{number:,} conversations, {source.stat().st_size / 1e6:,.0f} MB of JSON", flush=True
        )
        run_stage("prepare", work, number)
        seconds = run_stage("tokenize", work, number)
        tokens = json.loads((work / "reports/tokenize.json").read_text())["tokens"]
        print(f"  {tokens:,} tokens, {tokens / seconds:,.0f}/s")


def run_stage(name: str, work: Path, number: int) -> float:
    """Run a stage in a process of its own; the seconds it took. Prints speed and memory."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", f"stages.{name}"],
        cwd=work,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    # of this child alone: RUSAGE_CHILDREN would give the largest of all
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        sys.exit(f"{name} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    busy = usage.ru_utime + usage.ru_stime
    print(
        f"{name}: {seconds:.1f} s, {busy:.1f} s of CPU, "
        f"peak memory {usage.ru_maxrss * unit / 1e9:.2f} GB\n"
        f"  {number / seconds * 60:,.0f} conversations/min, {number / busy * 60:,.0f} a core",
        flush=True,
    )
    return seconds


def find_tokenizer(work: Path, source: Path) -> Path:
    folder = os.environ.get("SIMPLE_LLAMA_DATA")
    if folder:
        return Path(folder) / "seed_checkpoint" / "bpe_8k.json"
    return train_tokenizer(work / "tokenizer.json", source)


def train_tokenizer(path: Path, source: Path) -> Path:
    """On the first 10 MB of the generated text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from simple_llama.data.prompt_formats import CONTROL_TOKENS

    tokenizer = Tokenizer(models.BPE(unk_token="<UNK>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with open(source, encoding="utf-8") as file:
        tokenizer.train_from_iterator(file.read(10**7).split("\n"), trainer)
    tokenizer.save(str(path))
    return path


def write_conversations(path: Path, number: int) -> None:
    """A JSON array, one conversation a line."""
    with open(path, "w", encoding="utf-8") as file:
        for index, row in enumerate(conversations(number)):
            file.write("[\n" if index == 0 else ",\n")
            file.write(json.dumps(row))
        file.write("\n]\n")


def conversations(number: int) -> Iterator[dict[str, Any]]:
    """Distinct conversations of one or two turns, made of the demo's own sentences."""
    rng = random.Random(0)
    demo = json.loads(DEMO.read_text(encoding="utf-8"))
    sentences = [text for row in demo for text in (*row["User"], *row["Assistant"])]
    size = sum(map(len, sentences)) / len(sentences) + 1

    def text(characters: float) -> str:
        return " ".join(rng.choices(sentences, k=max(1, round(characters / size))))

    for index in range(number):
        turns = rng.choice((1, 1, 2))
        yield {
            "Template": ["CUSTOM"],
            "User": [f"{index}: {text(CHARACTERS / 3 / turns)}" for _ in range(turns)],
            "Assistant": [text(CHARACTERS * 2 / 3 / turns) for _ in range(turns)],
            "Category": f"category {index % 8}",
        }


if __name__ == "__main__":
    main()
