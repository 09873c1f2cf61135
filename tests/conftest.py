"""What several test modules build on."""

import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.support.tokenizer_kinds import TEXTS

torch.set_num_threads(1)  # tiny models: threads would only wait for each other


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with whole projects first: the short ones then fill what is left of each worker."""
    items.sort(key=lambda item: not hasattr(getattr(item, "module", None), "Project"))


CONTROL_TOKENS = ["<PAD>", "<UNK>", "<SOT>", "<EOT>", "<SOU>", "<EOU>", "<SOA>", "<EOA>"]


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json: byte-level BPE of some 300 entries in which nothing is unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<UNK>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=CONTROL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
def fixed_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """`transformers` sees the date that we always have."""
    pytest.importorskip("transformers")

    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Fixed":
            return cls(2024, 7, 26)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Fixed)
