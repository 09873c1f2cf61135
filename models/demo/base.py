"""`python -m models.demo.base`: pretrains the demo's base model from random weights.

It trains a byte-level BPE tokenizer and, with the project's own training loop, a tiny LLaMA on
plain texts about the demo's world, and writes both to models/demo/base/.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from models.demo.texts import documents
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.prompt_formats import CONTROL_TOKENS
from simple_llama.data.tokens import Tokens
from simple_llama.errors import InputError
from simple_llama.model.config import ModelConfig
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import pick_device
from simple_llama.model.folder import save_model
from simple_llama.params.reading import Params
from simple_llama.params.train import TrainParams
from simple_llama.stage_code import as_stage
from simple_llama.training.console import Console
from simple_llama.training.loop import train
from simple_llama.training.state import TrainingData

BASE = Path("models/demo/base")
CODE, LISTED_BY = Path("models/demo/code"), "dvc repro models/demo/dvc.yaml:demo_code"
START, END = "<SOS>", "<EOS>"
"""Tokens at the start and end of each document."""


@dataclass(frozen=True, kw_only=True)
class DemoParams:
    """The keys of models/demo/params.yaml that are not TrainParams."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    rope_theta: float
    init_std: float
    val_documents: float
    """Fraction of the documents in the validation split."""

    def __post_init__(self) -> None:
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"num_attention_heads: got {self.num_attention_heads}, "
                f"wanted a divisor of hidden_size ({self.hidden_size})"
            )
        if not 0 < self.val_documents < 1:
            raise InputError(f"val_documents: got {self.val_documents}, wanted between 0 and 1")


class Saver(Console):
    """Saves the model whenever its validation loss is the best so far."""

    def __init__(self, tokenizer: ChatTokenizer, folder: Path) -> None:
        super().__init__(tokenizer.decode)
        self.folder = folder

    def on_improvement(self, step: int, model: Decoder) -> None:
        save_model(model, BASE, self.folder)


def main() -> None:
    with as_stage("models.demo.base", CODE, LISTED_BY), TemporaryDirectory() as folder:
        all_params = Params("models/demo/params.yaml", (DemoParams, TrainParams))
        shape, params = all_params.section(DemoParams), all_params.section(TrainParams)
        texts = list(documents(params.seed))
        tokenizer = train_tokenizer(texts, shape.vocab_size)
        tokenizer.save(f"{folder}/bpe.json")
        chat = ChatTokenizer.from_path(
            f"{folder}/bpe.json",
            prompt_format="simple_llama",
            system_prompt="",
            model_max_length=params.max_seq_len,
        )
        chat.save(f"{folder}/tokenizer")
        model = Decoder(
            config(shape, chat.vocab_size, params.max_seq_len),
            dropout=params.dropout,
            fused=params.use_flash_attention,
        )
        model.init_weights(params.seed, shape.init_std)
        held_out = max(1, round(len(texts) * shape.val_documents))
        encoded = encode(tokenizer, texts, params.max_seq_len)
        data = TrainingData(
            train=Tokens.from_examples(encoded[held_out:]),
            val=Tokens.from_examples(encoded[:held_out]),
            pad_id=chat.pad_id,
            stop_ids=[chat.stop_id],
        )
        saver = Saver(chat, Path(folder, "tokenizer"))
        train(model.to(pick_device(params.device)), data, params, saver)
        saver.close()


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE with all 256 bytes and single digits; control tokens come first."""
    tokenizer = Tokenizer(models.BPE(unk_token="<UNK>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[START, END, *CONTROL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int
) -> list[tuple[list[int], list[int]]]:
    """(ids, mask) of each text between START and END; every token but the first is a target."""
    vocabulary = tokenizer.get_vocab()
    start, end = vocabulary[START], vocabulary[END]
    examples = []
    for encoding in tokenizer.encode_batch(texts):
        ids: list[int] = [start, *encoding.ids, end][:max_tokens]
        examples.append((ids, [0] + [1] * (len(ids) - 1)))
    return examples


def config(shape: DemoParams, vocab_size: int, max_tokens: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_attention_heads,
        head_dim=shape.hidden_size // shape.num_attention_heads,
        max_position_embeddings=max_tokens,
        rms_norm_eps=1e-5,
        rope_theta=shape.rope_theta,
        tie_word_embeddings=True,
        attention_bias=False,
        mlp_bias=False,
    )


if __name__ == "__main__":
    main()
