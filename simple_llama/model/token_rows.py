"""The rows of an embedding or output projection, one a token: some of a base were never trained.

A base may have no row for a token that was added to its tokenizer, or one of its padding (matrices
are padded to multiples of 64 and more), or zeros from before its training.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def initialise_rows(
    stored: Tensor, trained_vocab_size: int, size: int, control_ids: Iterable[int]
) -> Tensor:
    """The rows (V, D) as training starts from them, V at least `size`.

    Ids from trained_vocab_size on were added to the tokenizer: their rows, and those of control_ids
    that are zero, become the mean of the others. So a token never seen is as likely as the others
    on average, and its norm is not zero, through which gradients grow by hundreds.
    """
    fresh = sorted(
        {*range(trained_vocab_size, size), *(one for one in control_ids if _is_zero(stored, one))}
    )
    if not fresh:
        return stored
    mean = stored[:trained_vocab_size].float().mean(dim=0, keepdim=True)
    missing = max(size - len(stored), 0)
    rows = torch.cat((stored.float(), mean.expand(missing, -1)))
    rows[fresh] = mean
    return rows


def untrained_ids(stored: Tensor, trained_vocab_size: int, control_ids: Iterable[int]) -> set[int]:
    """Those of control_ids whose row in (V, D) cannot have been trained: of a token that was added,
    zero, or the same as another's. A row of random numbers is not recognised."""
    return {
        one
        for one in control_ids
        if one >= min(trained_vocab_size, len(stored))
        or _is_zero(stored, one)
        or _is_shared(stored, one)
    }


def _is_zero(stored: Tensor, row: int) -> bool:
    return row < len(stored) and not stored[row].any()


def _is_shared(stored: Tensor, row: int) -> bool:
    like = stored[stored[:, 0] == stored[row, 0]]
    return int((like == stored[row]).all(dim=1).sum()) > 1
