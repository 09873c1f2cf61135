"""Chat templates of today's kinds with tokenizers of the same kind, small: a folder of each."""

import json
import shutil
from pathlib import Path

from tests.tokenizer_kinds import LLAMA3, byte_level, sentence_piece, with_tokens

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
