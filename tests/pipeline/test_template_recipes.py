"""The recipes of docs/recipes.md for bases with a chat template of their own, as they stand, on
tiny random models; what they publish is the same in `transformers`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.tokens import Tokens
from simple_llama.data.tool_calls import parse_calls
from simple_llama.model.folder import load_model
from simple_llama.model.generation import generate
from tests.support.conversations import example
from tests.support.models import logits_of
from tests.support.project import Project
from tests.support.recipes import carry_out, sharegpt
from tests.support.templates import template_folder

CITIES = ("Pertola", "Lusaria", "Ostava", "Mirelle", "Tarn", "Vell", "Quord", "Sind")
WEATHER = {
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
}


def tool_rows() -> Iterator[dict[str, Any]]:
    for number in range(48):
        city = CITIES[number % len(CITIES)]
        arguments = {"city": city, "day": number}
        call = {"id": f"call{number:05}", "type": "function"}
        yield {
            "messages": [
                {"role": "user", "content": f"How is {city} on day {number}?"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            **call,
                            "function": {"name": "weather", "arguments": json.dumps(arguments)},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": call["id"], "content": '{"sky": "blue"}'},
                {"role": "assistant", "content": f"{city} is blue."},
            ],
            "tools": [{"type": "function", "function": WEATHER}],
        }


def thought_rows() -> Iterator[dict[str, Any]]:
    for number in range(48):
        city = CITIES[number % len(CITIES)]
        reply: dict[str, Any] = {"role": "assistant", "content": f"{city} is far."}
        row = {"messages": [{"role": "user", "content": f"Where is {city}, {number}?"}, reply]}
        if number % 2:
            reply["content"] = f"<think>\nThey ask for {city}.\n</think>\n{reply['content']}"
            yield row
        else:
            yield {**row, "chat_template_kwargs": {"enable_thinking": False}}


def make(root: Path, name: str, model_type: str, **changes: Any) -> Project:
    """A project whose models/base is a tiny random model, with a template of the same kind."""
    transformers = pytest.importorskip("transformers")
    project = Project.make(root)
    project.set(
        epochs=1, max_steps=4, sample_prompts=2, log_checkpoint="false", exact_match_max_tokens=64
    )
    base = template_folder(name, root / "models/base")
    vocabulary = json.loads((base / "tokenizer.json").read_text())["model"]["vocab"]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        model_type,
        **{**SHAPE, **changes},
        vocab_size=len(vocabulary),
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    stops = base / "generation_config.json"
    kept = stops.read_bytes() if stops.exists() else None
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(base)
    if kept is None:
        stops.unlink(missing_ok=True)
    else:
        stops.write_bytes(kept)
    return project


def write(project: Project, name: str, rows: Iterator[dict[str, Any]]) -> None:
    lines = [json.dumps(row) for row in rows]
    (project.root / "data/raw" / name).write_text("\n".join(lines))


def check_published(project: Project, messages: list[dict[str, Any]], **variables: Any) -> None:
    """models/sft in `transformers`: the same ids, logits and greedy text."""
    transformers = pytest.importorskip("transformers")
    folder = project.root / "models/sft"
    template = (folder / "chat_template.jinja").read_bytes()
    assert template == (project.root / "models/base/chat_template.jinja").read_bytes()
    chat, tokenizer = (
        ChatTokenizer.from_folder(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
    )
    others = {key: value for key, value in variables.items() if key != "tools"}
    row = {
        "messages": [*messages, {"role": "assistant", "content": "to come"}],
        "tools": variables.get("tools"),
        "chat_template_kwargs": others,
    }
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, **variables
    )
    assert ids == chat.prompt(example(row).messages[:-1])
    ours = load_model(folder).eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    batch = torch.tensor([ids])
    with torch.inference_mode():
        expected = theirs(batch).logits
        greedy = theirs.generate(batch, max_new_tokens=8, do_sample=False)[0, len(ids) :].tolist()
    assert torch.allclose(logits_of(ours, batch), expected, atol=1e-4)
    [reply] = generate(ours, [ids], max_new_tokens=8, stop_ids=chat.stop_ids)
    assert reply == [token for token in greedy if token not in chat.stop_ids]
    assert chat.decode(reply) == tokenizer.decode(greedy, skip_special_tokens=True)


@pytest.mark.slow
def test_qwen3_with_tools(tmp_path: Path) -> None:
    project = make(tmp_path, "qwen3", "qwen3", head_dim=8, tie_word_embeddings=True)
    rows = list(tool_rows())
    write(project, "tools.jsonl", iter(rows))
    (project.root / "data/raw/weather.json").write_text(json.dumps([WEATHER]))
    said = carry_out(project, "Qwen3 with tools", max_seq_len=900)
    assert "prompt format template: its own chat template" in said
    assert "each reply is an example of its own" in said
    prepared, tokenized = (project.json(f"reports/{name}.json") for name in ("prepare", "tokenize"))
    assert prepared["rejected"] == 0 and prepared["kept"] == 48
    assert tokenized["train_examples"] + tokenized["val_examples"] == 96, "call and answer"
    chat = ChatTokenizer.from_folder(project.root / "models/sft")
    tokens = Tokens.read(project.root / "data/tokens/train.safetensors")
    trained = chat.decode(
        tokens.ids[tokens.starts[0] : tokens.starts[1]][
            tokens.mask[tokens.starts[0] : tokens.starts[1]] == 1
        ]
    )
    assert parse_calls(trained)[0][0] == "weather"
    assert np.count_nonzero(np.diff(tokens.rows) == 0) == len(tokens) // 2
    looked = project.call("simple-llama", "inspect", "--id", "tools.jsonl[0]")
    assert looked.count("\ntools.jsonl[0]  ") == 2 and "prompt format template" in looked
    evaluated = project.json("reports/eval.json")
    assert evaluated["exact_match_examples"] == tokenized["val_examples"]
    messages = rows[0]["messages"]
    check_published(project, messages[:1], tools=rows[0]["tools"])
    check_published(project, messages[:3], tools=rows[0]["tools"])


@pytest.mark.slow
def test_gemma_with_its_template(tmp_path: Path) -> None:
    gemma = {"sliding_window": 16, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8}
    project = make(tmp_path, "gemma", "gemma3_text", head_dim=8, **gemma)
    rows = json.loads((project.root / "data/raw/few.json").read_text())[:60]
    write(project, "sharegpt.jsonl", map(sharegpt, rows))
    said = carry_out(project, "Gemma with its template", max_seq_len=512)
    assert "it shows no system prompt" in said and "it shows no tool calls" in said
    stops = project.json("models/sft/generation_config.json")["eos_token_id"]
    chat = ChatTokenizer.from_folder(project.root / "models/sft")
    assert sorted(stops) == sorted(chat.stop_ids) and len(stops) == 2, (
        "its own, and that of replies"
    )
    check_published(project, [{"role": "user", "content": "What is the capital of Lusaria?"}])


@pytest.mark.slow
@pytest.mark.usefixtures("fixed_date")
def test_smollm3_with_thoughts_on_and_off(tmp_path: Path) -> None:
    project = make(tmp_path, "smollm3", "smollm3", no_rope_layer_interval=2)
    write(project, "thoughts.jsonl", thought_rows())
    said = carry_out(project, "SmolLM3 with thoughts on and off", max_seq_len=512)
    assert "its date is always 26 July 2024" in said
    assert "not_shown" not in project.json("reports/tokenize.json")
    chat = ChatTokenizer.from_folder(project.root / "models/sft")
    tokens = Tokens.read(project.root / "data/tokens/train.safetensors")
    trained = [
        chat.decode(tokens.ids[a:b][tokens.mask[a:b] == 1])
        for a, b in zip(tokens.starts, tokens.starts[1:])
    ]
    thought = [text for text in trained if text.startswith("<think>\nThey ask")]
    plain = [text for text in trained if text.endswith(" is far.") and "think" not in text]
    assert thought and plain and len(thought) + len(plain) == len(trained)
    replies = (project.root / "replies.jsonl").read_text().splitlines()
    assert len(replies) == 48
    question = [{"role": "user", "content": "Where is Tarn?"}]
    check_published(project, question)
    check_published(project, question, enable_thinking=False)
