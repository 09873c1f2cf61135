"""Single examples of an evaluation: those that were answered, and those with the highest loss."""

from typing import Any

import numpy as np

from simple_llama.data.batches import split_prompt_and_reply
from simple_llama.evaluation.dataset import EvalDataset
from simple_llama.evaluation.metrics import Evaluation, reference

HIGHEST_LOSSES = 20
"""So many examples are listed."""


def answered_examples(
    dataset: EvalDataset, base: Evaluation, tuned: Evaluation
) -> list[dict[str, Any]]:
    """Each answered example: prompt, reference, the base model's and the tuned model's answer."""
    tokens, tokenizer = dataset.tokens, dataset.tokenizer
    return [
        {
            "category": dataset.categories[example],
            "prompt": tokenizer.decode(split_prompt_and_reply(tokens, example)[0]),
            "reference": reference(tokens, tokenizer, example),
            "base": base.replies[example],
            "tuned": tuned.replies[example],
            "base_match": base.matches.get(example),
            "match": tuned.matches.get(example),
        }
        for example in sorted(tuned.replies)
    ]


def highest_losses(
    dataset: EvalDataset, base: Evaluation, tuned: Evaluation
) -> list[dict[str, Any]]:
    """The examples with the highest loss of the tuned model, in nats per token, highest first.

    Wrong data stands out among them.
    """
    losses, before = (one.scores.loss / one.scores.tokens for one in (tuned, base))
    order = np.argsort(-losses, kind="stable")[:HIGHEST_LOSSES]
    return [
        {
            "id": dataset.ids[example],
            "category": dataset.categories[example],
            "loss": float(losses[example]),
            "base_loss": float(before[example]),
            "tokens": int(tuned.scores.tokens[example]),
            "prompt": dataset.tokenizer.decode(split_prompt_and_reply(dataset.tokens, example)[0]),
            "reference": reference(dataset.tokens, dataset.tokenizer, example),
        }
        for example in order.tolist()
    ]
