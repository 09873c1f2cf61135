"""More than one device: whatever the ranks, one result; and what saves memory changes none."""

import numpy as np
import torch

from simple_llama.data.batches import collate
from simple_llama.training.loss import summed_loss
from tests.test_training import PAD, examples, new_model, params, run


def test_recomputed_blocks_keep_every_byte_and_hold_less_memory() -> None:
    plain, _, expected = run(params(dropout=0.2, activation_checkpointing="none"))
    model, _, result = run(params(dropout=0.2, activation_checkpointing="blocks"))
    assert result == expected
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert 2 * kept_for_backward(recompute=True) < kept_for_backward(recompute=False)


def kept_for_backward(*, recompute: bool) -> int:
    """Elements that autograd keeps of a forward pass, weights aside."""
    model = new_model()
    model.recompute_blocks = recompute
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() if tensor.data_ptr() not in weights else 0
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        summed_loss(model, collate(examples(8), np.arange(8), PAD, None))
    return kept
