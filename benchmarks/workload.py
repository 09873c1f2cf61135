"""What the training benchmarks train: GSM8K, and a model of 9.0M parameters."""

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from simple_llama.data.batches import Indices, Plan
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.tokens import Tokens
from simple_llama.model.config import ModelConfig
from simple_llama.model.decoder import Decoder

PAD_ID = 0
STEP_EXAMPLES = 32
SHAPE = ModelConfig(
    vocab_size=8192,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=32,
    max_position_embeddings=1024,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    tie_word_embeddings=False,
    attention_bias=False,
    mlp_bias=False,
)


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
    """Means and standard deviations are GSM8K's; the first 80 tokens are the same for all."""
    random = np.random.default_rng(0)
    prefix = random.integers(8, SHAPE.vocab_size, 80)
    examples = []
    for prompt, reply in random.normal((150, 118), (30, 55), (7473, 2)).round().astype(int):
        sizes = max(prompt, 90) - len(prefix), min(max(reply, 20), 400)
        own = random.integers(8, SHAPE.vocab_size, sum(sizes))
        mask = np.arange(len(prefix) + sum(sizes)) >= len(prefix) + sizes[0]
        examples.append((np.concatenate((prefix, own)), mask))
    return Tokens.from_examples(examples)


def steps(count: int) -> list[Indices]:
    """The examples of the first steps, the same for every contestant."""
    plan = Plan(
        examples=len(tokens()), step_examples=STEP_EXAMPLES, seed=89, epochs=1, max_steps=count
    )
    return [plan.at(step) for step in range(count)]


def new_model(dropout: float) -> Decoder:
    """The same weights each time."""
    model = Decoder(SHAPE, dropout=dropout)
    model.initialise(0)
    return model.train()


def flops(examples: Indices) -> float:
    """Of one optimizer step's matrix products, forward and backward, over real tokens only: six
    for each weight and token (https://arxiv.org/abs/2001.08361), the output projection's at
    supervised tokens, and causal attention's."""
    lengths = tokens().lengths[examples].astype(float)
    blocks = sum(p.numel() for p in new_model(0.0).layers.parameters() if p.ndim == 2)
    supervised = sum(
        int(tokens().mask[tokens().starts[i] : tokens().starts[i + 1]].sum()) for i in examples
    )
    head = SHAPE.vocab_size * SHAPE.hidden_size
    width = SHAPE.num_attention_heads * SHAPE.head_dim
    attention = 6 * SHAPE.num_hidden_layers * width * float((lengths**2).sum())
    return 6 * (blocks * float(lengths.sum()) + head * supervised) + attention
