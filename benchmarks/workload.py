"""What the training benchmarks train: GSM8K, and models of several sizes."""

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from simple_llama.data.batches import Indices, Plan, count_supervised
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.tokens import Tokens
from simple_llama.model.config import ModelConfig
from simple_llama.model.decoder import Decoder

PAD_ID = 0
STEP_EXAMPLES = 32


def _shape(
    width: int,
    inner: int,
    layers: int,
    heads: int,
    *,
    key_heads: int = 0,
    vocabulary: int = 8192,
    tied: bool = False,
) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads or heads,
        head_dim=width // heads,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=tied,
        attention_bias=False,
        mlp_bias=False,
    )


SHAPES = {
    "0.5M": _shape(32, 88, 2, 4),
    "9.0M": _shape(256, 704, 6, 8),
    "94.4M": _shape(768, 2048, 14, 12, key_heads=4, tied=True),
    "135M": _shape(576, 1536, 30, 9, key_heads=3, vocabulary=49152, tied=True),
    "1.3B": _shape(2048, 5632, 24, 32),
    "8B": _shape(4096, 14336, 32, 32, key_heads=8, vocabulary=128_256),
}
"""By parameters; 135M is SmolLM2's, 1.3B SimpleLLaMA's, 8B Llama 3's."""
SHAPE = SHAPES["9.0M"]


@dataclass(frozen=True)
class Step:
    """One optimizer step as it was measured."""

    tokens: int
    """Real ones, without padding."""
    seconds: float
    loss: float
    """Nats per supervised token, before the update."""

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


@cache
def tokens() -> Tokens:
    """GSM8K's training questions, or random tokens in examples of the same lengths."""
    folder = os.environ.get("SIMPLE_LLAMA_DATA")
    return _gsm8k(Path(folder)) if folder else _synthetic()


def data_name() -> str:
    return "GSM8K" if os.environ.get("SIMPLE_LLAMA_DATA") else "synthetic data of GSM8K's lengths"


def _gsm8k(folder: Path) -> Tokens:
    chat = ChatTokenizer.from_path(
        folder / "seed_checkpoint/bpe_8k.json",
        prompt_format="auto",
        system_prompt="You are a helpful assistant.",
    )
    rows = json.loads((folder / "gsm8k_train.json").read_text(encoding="utf-8"))
    conversations = [
        [
            {"role": "user", "content": row["User"][0]},
            {"role": "assistant", "content": row["Assistant"][0]},
        ]
        for row in rows
    ]
    return Tokens.from_examples(chat.encode(conversations, "last_reply"))


def _synthetic() -> Tokens:
    """Lengths distributed as GSM8K's: the logarithms of prompts and replies are about normal, with
    these means and covariances; the first 12 tokens are the same for all."""
    random = np.random.default_rng(0)
    prefix = random.integers(8, SHAPE.vocab_size, 12)
    logarithms = random.multivariate_normal((4.17, 4.70), ((0.12, 0.07), (0.07, 0.17)), 7473)
    examples = []
    for prompt, reply in np.exp(logarithms).round().astype(int).clip(8, 450):
        ids = random.integers(8, SHAPE.vocab_size, prompt + reply)
        mask = np.arange(len(prefix) + len(ids)) >= len(prefix) + prompt
        examples.append((np.concatenate((prefix, ids)), mask))
    return Tokens.from_examples(examples)


def finish(device: str) -> None:
    """Wait for what a GPU still computes: time counts until then."""
    if device != "cpu":
        torch.cuda.synchronize()


def steps(count: int) -> list[Indices]:
    """The examples of the first steps, the same for every contestant."""
    plan = Plan(
        num_examples=len(tokens()),
        examples_per_step=STEP_EXAMPLES,
        seed=89,
        epochs=1,
        max_steps=count,
    )
    return [plan.examples_at(step) for step in range(count)]


def new_model(dropout: float, shape: ModelConfig = SHAPE, device: str = "cpu") -> Decoder:
    """The same weights each time on a kind of device, where they are drawn: for 1.3B parameters a
    CPU needs longer than a GPU for the whole measurement."""
    if device == "cpu":
        model = Decoder(shape, dropout=dropout)
        model.init_weights(0)
        return model.train()
    with torch.device(device):
        torch.manual_seed(0)
        model = Decoder(shape, dropout=dropout)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, 0.0, 0.02)
    return model.to(device).train()


def flops(examples: Indices, shape: ModelConfig = SHAPE) -> float:
    """Of one optimizer step's matrix products, forward and backward, over real tokens only: six
    for each weight and token (https://arxiv.org/abs/2001.08361), the output projection's at
    supervised tokens, and causal attention's."""
    lengths = tokens().lengths[examples].astype(float)
    with torch.device("meta"):
        blocks = sum(p.numel() for p in Decoder(shape).layers.parameters() if p.ndim == 2)
    supervised = count_supervised(tokens(), examples)
    head = shape.vocab_size * shape.hidden_size
    width = shape.num_attention_heads * shape.head_dim
    attention = 6 * shape.num_hidden_layers * width * float((lengths**2).sum())
    return 6 * (blocks * float(lengths.sum()) + head * supervised) + attention
