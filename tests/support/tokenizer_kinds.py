"""Tokenizers of the kinds that real models come with, small: what differs is how they split."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = [
    "You are a helpful assistant. What is the capital of Lusaria? The capital is Pertola.",
    "How many apples are left? 12 - 5 = 7, so 7 apples are left.",
    'Sort the list: pear, fig, apple. {"answer": ["apple", "fig", "pear"]}',
]

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA3 = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
# of Qwen2.5; Llama 3's differs in taking up to three digits
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    *TEXTS,
    "system user assistant ### Instruction: Below is ### Response: <|user|> <|assistant|>",
    "one\n\ntwo\n\n\nthree  four\n  five\n\tsix\r\n\r\nseven",
]


def byte_level(path: Path, special: Sequence[str], *, words: bool = True) -> Path:
    """As of Qwen2.5 and Llama 3; with words=False as of GPT-2 and SmolLM2."""
    tokenizer = Tokenizer(models.BPE())
    if words:
        tokenizer.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    else:
        digits = pre_tokenizers.Digits(individual_digits=True)
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


def with_tokens(path: Path, names: Sequence[str], **flags: bool) -> Path:
    """The same tokenizer.json with further added tokens that are text, such as <think>; flags: of
    these, and of those that it has by these names."""
    layout = json.loads(path.read_text())
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    known = {token["content"]: token for token in layout["added_tokens"]}
    vocabulary = layout["model"]["vocab"]
    for name in names:
        token = known.get(name) or {"id": max(vocabulary.values()) + 1, "content": name, **plain}
        vocabulary.setdefault(name, token["id"])
        if name not in known:
            layout["added_tokens"].append(token)
        token |= flags
    path.write_text(json.dumps(layout))
    return path


def sentence_piece(path: Path, *, legacy: bool) -> Path:
    """As of Llama 2, TinyLlama and Mistral: bytes as a fallback, no split into words, a beginning
    token. legacy: a space before every text; else before the first one only."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, show_progress=False)
    trained.train_from_iterator([text.replace("\n", " ") for text in CORPUS] * 4, trainer)
    layout = json.loads(trained.to_str())
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [word for word in layout["model"]["vocab"] if word not in first]
    layout["model"] |= {
        "vocab": {word: index for index, word in enumerate([*first, *words])},
        "byte_fallback": True,
        "fuse_unk": True,
    }
    layout["added_tokens"] = [
        {"id": i, "content": first[i], "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i in range(3)
    ]
    replace: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = {"type": "Prepend", "prepend": "▁"}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}
    layout["normalizer"] = (
        {"type": "Sequence", "normalizers": [prepend, replace]} if legacy else None
    )
    layout["pre_tokenizer"] = None if legacy else metaspace | {"split": False}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    layout["decoder"] = {
        "type": "Sequence",
        "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip],
    }
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text, pair = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    layout["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, begin, pair],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(layout))
    return path
