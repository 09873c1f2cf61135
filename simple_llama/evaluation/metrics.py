"""Scoring a model on a whole split: token-weighted loss, accuracy, greedy exact match."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from simple_llama.data.batches import Indices, batch_by_size, evenly_spaced, split_prompt_and_reply
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.tokens import Tokens
from simple_llama.data.tool_calls import parse_calls
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import autocast, free_memory
from simple_llama.model.generation import generate
from simple_llama.params.evaluate import EvaluateParams
from simple_llama.training.distributed import SINGLE_PROCESS, Ranks
from simple_llama.training.loss import Scores, score

GPU_MEMORY_FRACTION = 0.5
"""How much of a GPU's free memory a batch may fill."""
MAX_TOKENS_AT_ONCE = 2**17
"""Tokens of a batch, at most: larger batches are not faster."""
LONG_SAMPLES = 8
"""Examples whose reference is too long for exact match, but which are answered for the reader."""


@dataclass(frozen=True)
class Evaluation:
    """What one model scored and answered on E examples."""

    scores: Scores
    replies: Mapping[int, str]
    """By example: the greedy reply."""
    matches: Mapping[int, bool]
    """By scored example: whether the reply is the reference, or makes its calls."""
    references: Mapping[int, str]
    """By scored example."""


def evaluate(
    model: Decoder,
    tokens: Tokens,
    tokenizer: ChatTokenizer,
    params: EvaluateParams,
    ranks: Ranks = SINGLE_PROCESS,
) -> Evaluation:
    """Score every example, and answer those whose reference is short, plus a few long ones.

    The ranks share the work, and each gets the whole result.
    """
    device = next(model.parameters()).device
    budget = tokens_per_batch(model, params)
    scores = score(
        model,
        tokens,
        np.arange(len(tokens)),
        max_tokens=budget,
        pad_id=tokenizer.pad_id,
        precision=params.precision,
        ranks=ranks,
    )
    short, long = exact_match_examples(tokens, params.exact_match_max_tokens)
    with autocast(device, params.precision):
        most = params.exact_match_max_tokens
        answers = _answer(model, tokens, tokenizer, short, most, budget, ranks)
        # a reply that goes on, or holds a control token, is not the reference's text alone
        unended = {i for i, ids in answers.items() if len(ids) > most or tokenizer.has_control(ids)}
        some_long = long[evenly_spaced(len(long), LONG_SAMPLES)] if len(long) else long
        longest = int(tokens.lengths.max())
        answers |= _answer(model, tokens, tokenizer, some_long, longest, budget, ranks)
    replies = {i: tokenizer.decode(ids) for i, ids in answers.items()}
    references = {i: reference(tokens, tokenizer, i) for i in short.tolist()}
    matches = {
        i: i not in unended and _same(replies[i], references[i], calls=tokenizer.shows_calls)
        for i in references
    }
    return Evaluation(scores, replies, matches, references)


def tokens_per_batch(model: Decoder, params: EvaluateParams) -> int:
    """Return how many tokens a batch may have: micro_batch_tokens, where that is a number.

    Where it is auto, a GPU takes what fits into GPU_MEMORY_FRACTION of its free memory: the keys
    and values of all layers, and the activations of one, in float32 at most.
    """
    free = free_memory(next(model.parameters()).device)
    if params.micro_batch_tokens != "auto" or free is None or params.deterministic:
        return params.tokens_at_once
    config = model.config
    cached = 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    computed = 8 * config.hidden_size + 4 * config.intermediate_size
    most = GPU_MEMORY_FRACTION * free / (4 * (cached + computed))
    return int(min(MAX_TOKENS_AT_ONCE, max(params.tokens_at_once, most)))


def _same(reply: str, wanted: str, *, calls: bool) -> bool:
    """Whether a reply equals the reference.

    Where the reference calls tools, the reply has to make the same calls: how they are written, and
    what stands before them, does not count.
    """
    if calls and (called := parse_calls(wanted)):
        return parse_calls(reply) == called
    return reply.strip() == wanted.strip()


def exact_match_examples(tokens: Tokens, max_tokens: int) -> tuple[Indices, Indices]:
    """Split the examples: those whose reference has at most max_tokens tokens, and the others."""
    # the last reply's closing control token is not counted
    sizes = np.array(
        [len(split_prompt_and_reply(tokens, i)[1]) - 1 for i in range(len(tokens))], np.int64
    )
    return np.flatnonzero(sizes <= max_tokens), np.flatnonzero(sizes > max_tokens)


def reference(tokens: Tokens, tokenizer: ChatTokenizer, example: int) -> str:
    """Return the text of an example's last reply, decoded from its tokens."""
    return tokenizer.decode(split_prompt_and_reply(tokens, example)[1][:-1])


def _answer(
    model: Decoder,
    tokens: Tokens,
    tokenizer: ChatTokenizer,
    examples: Indices,
    max_tokens: int,
    budget: int,
    ranks: Ranks,
) -> dict[int, list[int]]:
    """Greedy replies, as token ids, in batches of like length.

    Up to max_tokens + 1 tokens are generated: a reply that has so many did not end in time.
    """
    prompts = {int(i): split_prompt_and_reply(tokens, int(i))[0] for i in examples}
    lengths = np.zeros(len(tokens), np.int64)
    for example, prompt in prompts.items():
        lengths[example] = len(prompt) + max_tokens
    replies: dict[int, list[int]] = {}
    groups = batch_by_size(lengths, examples, budget, None)
    mine = ranks.assigned(groups, [len(group) * int(lengths[group[0]]) for group in groups])
    for group in tqdm(mine, desc="answering", unit="batch", disable=None, leave=False):
        answers = generate(
            model,
            [prompts[int(i)] for i in group],
            max_new_tokens=max_tokens + 1,
            stop_ids=tokenizer.stop_ids,
        )
        replies |= {int(i): ids for i, ids in zip(group, answers, strict=True)}
    return {i: ids for part in ranks.all_gather(replies) for i, ids in part.items()}


def summarise(
    tuned: Evaluation, base: Evaluation | None, categories: Sequence[str | None], data: str
) -> dict[str, Any]:
    """Write what reports/eval.json holds: both models over all examples, and by category.

    base: None where there is only one model. categories: one per example. data: a sentence on
    what was evaluated. Losses are in nats per supervised token; shares are from 0 to 1, None where
    no example was scored.
    """
    named = [name or "uncategorised" for name in categories] if any(categories) else []
    by_category = {}
    for name in sorted(set(named)):
        examples = np.array([i for i, other in enumerate(named) if other == name])
        row = _row(tuned, base, examples)
        by_category[name] = {key: row[key] for key in CATEGORY_KEYS if key in row}
    return {
        **_row(tuned, base, np.arange(len(categories))),
        "data": data,
        "by_category": by_category,
    }


CATEGORY_KEYS = (
    "examples",
    "val_loss",
    "base_val_loss",
    "exact_match_examples",
    "exact_match",
    "base_exact_match",
    "most_frequent_answer",
)


def _row(tuned: Evaluation, base: Evaluation | None, examples: Indices) -> dict[str, Any]:
    mine = _part(tuned.scores, examples)
    scored = [i for i in examples.tolist() if i in tuned.matches]
    return {
        "val_loss": _rounded(mine.mean_loss),
        "val_perplexity": _rounded(math.exp(min(mine.mean_loss, 700.0))),
        "val_token_accuracy": _rounded(mine.accuracy),
        "exact_match": _share(tuned.matches, scored),
        "exact_match_examples": len(scored),
        **(_base_keys(base, examples, scored) if base else {}),
        "most_frequent_answer": _most_frequent(tuned.references, scored),
        "examples": len(examples),
        "supervised_tokens": int(mine.tokens.sum()),
    }


def _base_keys(base: Evaluation, examples: Indices, scored: list[int]) -> dict[str, Any]:
    theirs = _part(base.scores, examples)
    return {
        "base_val_loss": _rounded(theirs.mean_loss),
        "base_token_accuracy": _rounded(theirs.accuracy),
        "base_exact_match": _share(base.matches, scored),
    }


def _part(scores: Scores, examples: Indices) -> Scores:
    return Scores(scores.loss[examples], scores.tokens[examples], scores.correct[examples])


def _share(matches: Mapping[int, bool], scored: list[int]) -> float | None:
    return _rounded(sum(matches[i] for i in scored) / len(scored)) if scored else None


def _most_frequent(references: Mapping[int, str], scored: list[int]) -> float | None:
    """The exact match of a model that always gives the most frequent answer."""
    if not scored:
        return None
    [(_, times)] = Counter(references[i] for i in scored).most_common(1)
    return _rounded(times / len(scored))


def _rounded(value: float) -> float:
    return round(value, 6)
