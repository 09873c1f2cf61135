"""Chat templates of today's kinds with tokenizers of the same kind, small: a folder of each."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.tokenizer_kinds import LLAMA3, byte_level, sentence_piece, with_tokens

TEMPLATES = Path(__file__).parent / "chat_templates"
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NAMES = ("qwen3", "llama3", "gemma", "mistral", "smollm3", "phi3")


def template_folder(name: str, folder: Path) -> Path:
    """As its maker would publish it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    config: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if name in ("qwen3", "smollm3"):
        with_tokens(byte_level(path, CHATML), TAGS)
        config |= {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    elif name == "llama3":
        byte_level(path, LLAMA3)
        config |= {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    elif name == "phi3":
        markers = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
        byte_level(path, ("<|endoftext|>", *markers))
        with_tokens(path, markers, special=True, rstrip=True)
        config |= {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    else:
        sentence_piece(path, legacy=name == "mistral")
        config |= {"bos_token": "<s>", "eos_token": "</s>"}
        if name == "gemma":
            with_tokens(path, ("<start_of_turn>", "<end_of_turn>"), special=True)
            with_tokens(path, ("\n\n", "\n\n\n"))
            (folder / "generation_config.json").write_text('{"eos_token_id": [2]}')
    shutil.copyfile(TEMPLATES / f"{name}.jinja", folder / "chat_template.jinja")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


# as their makers publish them
QWEN = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def of_transformers(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    # as in a model folder: what kind of model it is must not choose another tokenizer
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return transformers.AutoTokenizer.from_pretrained(folder)


def foreign(tokenizer: Path, folder: Path, template: str | None, eos: str) -> Path:
    """A tokenizer's folder as its maker left it."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    bos = "<s>" if eos == "</s>" else "<|begin_of_text|>" if eos == "<|eot_id|>" else None
    config: dict[str, Any] = {
        "eos_token": {"__type": "AddedToken", "content": eos},
        "bos_token": bos,
    }
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
