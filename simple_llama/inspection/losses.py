"""The loss of each token of an example, as a model has it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from simple_llama.data.prompt import ChatTokenizer
from simple_llama.model.checkpoint import load_config
from simple_llama.model.device import autocast, pick_device
from simple_llama.model.folder import load_model
from simple_llama.params.evaluate import EvaluateParams
from simple_llama.params.reading import Params

MAX_LOGITS = 2**26
"""At once."""
TokenLosses = Callable[[Sequence[int]], list[float]]
"""Token ids (T,) → the loss of each (T,), in nats: the negative log-probability that the model
gives it after the tokens before it; 0 for the first."""


def token_losses(folder: str, tokenizer: Path) -> TokenLosses:
    """Load the model in `folder`. tokenizer: the folder of the tokenizer that made the ids.

    Raises InputError.
    """
    params = Params().section(EvaluateParams)
    device = pick_device(params.device)
    chat = ChatTokenizer.from_folder(tokenizer)
    # a base that lacks the last tokens is scored as it is trained from: with the mean of the others
    lacks = load_config(folder).vocab_size < chat.vocab_size
    model = load_model(
        folder,
        device,
        fused=params.use_flash_attention,
        vocab_size=chat.vocab_size,
        trained_vocab_size=chat.base_vocab_size if lacks else None,
        control_ids=chat.control_ids.values() if lacks else (),
    ).eval()

    @torch.inference_mode()
    def of(ids: Sequence[int]) -> list[float]:
        row = torch.tensor([list(ids)], device=device)
        with autocast(device, params.precision):
            hidden = model(row)[0, :-1]
            losses = [0.0]
            rows = max(1, MAX_LOGITS // model.config.vocab_size)
            for part, targets in zip(torch.split(hidden, rows), torch.split(row[0, 1:], rows)):
                logits = model.logits(part)
                losses += F.cross_entropy(logits, targets, reduction="none").tolist()
        return losses

    return of
