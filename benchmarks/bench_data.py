"""Speed and memory of prepare and tokenize on a generated file of conversations, and encoding in
turns with its peers: prompt and reply one by one, as the textbook does, and datasets' map.

    python -m benchmarks.bench_data --conversations 1000000

SIMPLE_LLAMA_DATA may name a folder with seed_checkpoint/bpe_8k.json, the tokenizer, and
gsm8k_train.json, which is then encoded too. Without it the tokenizer has 8,192 entries and was
trained on the generated text.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks import results

DEMO = Path("data/raw/demo_sft.json")
PEERS_SEE = 30_000
"""Conversations that are encoded in turns."""
ROUNDS = 5
SYSTEM_PROMPT = "You are a helpful assistant."
CHARACTERS = 900
"""Of text in a conversation, about; with its keys it takes 1 KB."""


Work = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--conversations", type=int, default=100_000)
    number = parser.parse_args().conversations
    command = f"python -m benchmarks.bench_data --conversations {number}"
    with results.section("Data", command), tempfile.TemporaryDirectory() as folder:
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
        tokenizer = find_tokenizer(work, source)
        plain = compare("generated", tokenizer, list(conversations(min(number, PEERS_SEE))))
        print(f"  tokenize, files and start included: {tokens / seconds / plain:.1f} x one by one")
        if data := os.environ.get("SIMPLE_LLAMA_DATA"):
            text = Path(data, "gsm8k_train.json").read_text(encoding="utf-8")
            compare("GSM8K", tokenizer, json.loads(text))


def compare(data: str, path: Path, rows: list[dict[str, Any]]) -> float:
    """Encoding alone, without files, all in this process: each peer gives the same ids or fewer.

    Returns tokens per second one by one.
    """
    from tokenizers import Tokenizer

    from simple_llama.data.workers import available_cores

    messages = [list(as_messages(row)) for row in rows]
    batches = [messages[start : start + 1024] for start in range(0, len(messages), 1024)]
    texts = [as_texts(row) for row in rows]

    def ours() -> Work:
        encode = encoder(path)
        return lambda: [encode(batch) for batch in batches]

    def one_by_one() -> Work:
        plain = Tokenizer.from_file(str(path))
        return lambda: [
            len(plain.encode(prompt).ids) + len(plain.encode(reply).ids) for prompt, reply in texts
        ]

    contestants: dict[str, Callable[[], Work]] = {"ours": ours, "one by one": one_by_one}
    if results.installed("datasets"):
        contestants["datasets.map"] = lambda: mapped(Tokenizer.from_file(str(path)), texts)
    tokens = sum(len(batch.ids) for batch in ours()())
    on_all_cores: list[float] = []
    print(
        f"encoding {len(rows):,} conversations ({data}), {tokens:,} tokens, medians of {ROUNDS} "
        f"rounds"
    )
    print(f"  {'':<14}{'tok/s':>10}{'of CPU':>10}{'ours / it':>11}{'(range)':>15}{'of CPU':>8}")
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, make in contestants.items():
            encode = make()  # it has seen no text yet
            begin = time.perf_counter(), time.process_time()
            encode()
            seconds[name].append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
        on_all_cores.append(shared(path, batches))
    for name, times in seconds.items():
        speed, busy = (tokens / statistics.median(column) for column in zip(*times))
        ratios = [theirs[0] / mine[0] for theirs, mine in zip(times, seconds["ours"])]
        of_cpu = statistics.median(
            theirs[1] / mine[1] for theirs, mine in zip(times, seconds["ours"])
        )
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(
            f"  {name:<14}{speed:>10,.0f}{busy:>10,.0f}{statistics.median(ratios):>11.2f}"
            f"{spread:>15}{of_cpu:>8.2f}",
            flush=True,
        )
    if "datasets.map" not in contestants:
        print("  datasets is not installed: left out")
    alone = [times[0] for times in seconds["one by one"]]
    ratios = [theirs / mine for theirs, mine in zip(alone, on_all_cores, strict=True)]
    print(
        f"  ours in {available_cores()} processes: "
        f"{tokens / statistics.median(on_all_cores):,.0f} tok/s, {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}) x one by one"
    )
    return tokens / statistics.median(alone)


def encoder(path: Path) -> Callable[[Any], Any]:
    """Encodes conversations: ids, mask and lengths."""
    from simple_llama.data.prompt import ChatTokenizer

    chat = ChatTokenizer.from_path(path, prompt_format="simple_llama", system_prompt=SYSTEM_PROMPT)
    return partial(chat.encode_batch, supervise="last_reply")


def shared(path: Path, batches: list[Any]) -> float:
    """Seconds in which processes that have started, but seen no text, encode the batches."""
    from simple_llama.data.workers import Workers, available_cores

    with Workers(partial(encoder, path), available_cores()) as workers:
        list(workers.in_order([batches[0][:1]] * available_cores()))
        begin = time.perf_counter()
        list(workers.in_order(batches))
        return time.perf_counter() - begin


def mapped(tokenizer: Any, texts: list[tuple[str, str]]) -> Work:
    """datasets.map with batches of the same texts and the same tokenizer."""
    import datasets

    datasets.disable_progress_bars()
    datasets.disable_caching()
    prompts, replies = (list(column) for column in zip(*texts, strict=True))
    data = datasets.Dataset.from_dict({"prompt": prompts, "reply": replies})

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {
            key: [encoding.ids for encoding in tokenizer.encode_batch_fast(batch[key])]
            for key in ("prompt", "reply")
        }

    return lambda: data.map(encode, batched=True, remove_columns=["prompt", "reply"])


def as_messages(row: dict[str, Any]) -> Iterator[dict[str, str]]:
    for user, assistant in zip(row["User"], row["Assistant"], strict=True):
        yield {"role": "user", "content": user}
        yield {"role": "assistant", "content": assistant}


def as_texts(row: dict[str, Any]) -> tuple[str, str]:
    """The prompt with its control tokens as text, and the last reply."""
    turns = "".join(
        f"\n\n<SOU>{user}<EOU>\n<SOA>{assistant}<EOA>"
        for user, assistant in zip(row["User"], row["Assistant"], strict=True)
    )
    reply = f"{row['Assistant'][-1]}<EOA>"
    return f"<SOT>{SYSTEM_PROMPT}<EOT>{turns.removesuffix(reply)}", reply


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
    # of the largest of this child and its own; RUSAGE_CHILDREN would give that of all stages
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        sys.exit(f"{name} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    busy = usage.ru_utime + usage.ru_stime
    print(
        f"{name}: {seconds:.1f} s, {busy:.1f} s of CPU, "
        f"peak memory of a process {usage.ru_maxrss * unit / 1e9:.2f} GB\n"
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
