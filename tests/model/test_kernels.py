"""What training on a CPU computes in its own way is what PyTorch computes."""

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from simple_llama.data.batches import collate
from simple_llama.model import kernels
from simple_llama.model.attention import plain_attention
from simple_llama.model.decoder import Decoder
from simple_llama.model.device import autocast
from simple_llama.model.packing import Packed
from simple_llama.training import loss
from simple_llama.training.loss import score, summed_loss
from tests.support.models import tiny_config
from tests.support.trainings import PAD, ROOT, examples


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that these few tokens fill several of, with a rest."""
    monkeypatch.setattr(kernels, "BLOCK_QUERIES", 6)
    monkeypatch.setattr(kernels, "BLOCK_MULTIPLE", 3)
    monkeypatch.setattr(kernels, "MAX_SCORES", 300)
    monkeypatch.setattr(kernels, "MAX_LOGITS", 97 * 3)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The output and, for some gradient of it, those of the inputs."""
    out = function(*inputs)
    upstream = random(*out.shape, seed=9).detach()
    return [out, *torch.autograd.grad(out, inputs, upstream)]


def largest_difference(mine: list[Tensor], theirs: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("variant", [{}, {"num_key_value_heads": 1, "tie_word_embeddings": True}])
def test_loss_and_gradients_of_a_model(
    variant: dict[str, object], small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Decoder(tiny_config(**variant)).train()
    model.init_weights(0, std=0.3)
    batch = collate(examples(12), np.arange(12), PAD, None, packing=True)

    def compute() -> list[Tensor]:
        mean = summed_loss(model, batch) / len(batch.targets)
        return [mean, *torch.autograd.grad(mean, list(model.parameters()))]

    mine = compute()
    monkeypatch.setattr(kernels, "MAX_KEPT_KEYS", 3)
    assert largest_difference(mine, compute()) < 1e-5
    for name in ("uses_cpu_attention", "uses_cpu_kernels"):
        monkeypatch.setattr(kernels, name, lambda x: False)
    assert largest_difference(mine, compute()) < 1e-5


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("offsets", [[0, 1], [0, 13, 14, 21], [0, 6, 6, 12], [0, 4, 8, 9, 9]])
@pytest.mark.parametrize(("longest", "scale"), [(512, None), (512, 0.7), (5, None), (5, 0.7)])
def test_packed_attention(
    heads: tuple[int, int],
    offsets: list[int],
    longest: int,
    scale: float | None,
    small_blocks: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Examples of several blocks, of a part of one, of one token and of none."""
    monkeypatch.setattr(kernels, "MAX_KEPT_KEYS", longest)
    (H, G), N = heads, offsets[-1]
    q, k, v = random(1, H, N, 8), random(1, G, N, 8, seed=1), random(1, G, N, 6, seed=2)
    starts = torch.tensor(offsets, dtype=torch.int32)
    packed = Packed(starts, int(starts.diff().max()))

    def mine(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernels.packed_attention(q, k, v, packed, scale)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = k.repeat_interleave(H // G, 1), v.repeat_interleave(H // G, 1)
        lengths = starts.diff().tolist()
        causal = (torch.ones(length, length).tril() for length in lengths)
        seen = torch.block_diag(*causal)  # type: ignore[no-untyped-call]
        return plain_attention(q, k, v, seen.bool(), scale=scale)

    expected = gradients(plain, q, k, v)
    assert largest_difference(gradients(mine, q, k, v), expected) < 1e-5


def test_what_follows_an_example_has_no_say(small_blocks: None) -> None:
    """However large it is."""
    q, k, v = (random(1, 2, 14, 8, seed=seed) for seed in range(3))
    packed = Packed(torch.tensor([0, 7, 14], dtype=torch.int32), 7)
    expected = kernels.packed_attention(q, k, v, packed)[:, :, :7]
    with torch.no_grad():
        for x in (q, k, v):
            x[:, :, 7:] = 1e30
    assert torch.equal(kernels.packed_attention(q, k, v, packed)[:, :, :7], expected)


@pytest.mark.parametrize("trained", [True, False], ids=["trained head", "frozen head"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_large_vocabulary_has_the_same_loss_in_parts(
    trained: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three positions at a time, the last of fewer; and gradients of what surrounds it."""
    model = Decoder(tiny_config()).train()
    model.init_weights(0, std=0.3)
    model.lm_head.requires_grad_(trained)
    batch = collate(examples(12), np.arange(12), PAD, None, packing=True)
    weights = [p for p in model.parameters() if p.requires_grad]

    def compute() -> list[Tensor]:
        with autocast(torch.device("cpu"), precision):
            total = summed_loss(model, batch) / len(batch.targets)
        with torch.no_grad():
            scores = score(
                model, examples(12), np.arange(12), max_tokens=99, pad_id=PAD, precision=precision
            )
        kept = [torch.from_numpy(values) for values in (scores.loss, scores.correct)]
        return [total, *torch.autograd.grad(total * 3, weights), *kept]

    whole = compute()
    monkeypatch.setattr(loss, "MAX_LOGITS", 97 * 3)
    assert largest_difference(whole, compute()) < (1e-5 if precision == "fp32" else 2e-2)


@pytest.mark.slow
def test_a_large_vocabulary_takes_little_memory() -> None:
    """4,096 positions of 152,064 scores are 2.5 GB in float32; held are a part and its gradient,
    whatever the number of positions."""
    grown = subprocess.run(
        [sys.executable, "-c", LARGE_VOCABULARY], cwd=ROOT, check=True, capture_output=True
    )
    assert int(grown.stdout) < 1e9


LARGE_VOCABULARY = """
import resource, torch
from tests.support.models import tiny_config
from simple_llama.data.batches import MicroBatch
from simple_llama.model.decoder import Decoder
from simple_llama.training.loss import summed_loss
torch.set_num_threads(1)
model = Decoder(tiny_config(vocab_size=152064)).train()
ids = torch.arange(4096).view(8, 512)
batch = MicroBatch(ids=ids, positions=torch.arange(4096), targets=ids.flatten(),
    example_index=None, examples=None, longest=512, offsets=None)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
summed_loss(model, batch).backward()
print(peak() - before)
"""


def test_norm() -> None:
    x, norm = random(3, 5, 8), kernels.RMSNorm(8, 1e-5)
    with torch.no_grad():
        norm.weight.copy_(random(8, seed=1))

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (8,), weight, 1e-5)

    mine = gradients(lambda x, _: norm(x), x, norm.weight)
    assert largest_difference(mine, gradients(plain, x, norm.weight)) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype == torch.bfloat16
        with torch.no_grad():
            assert torch.equal(norm(x), plain(x, norm.weight).bfloat16())


def test_dropout_keeps_its_share_and_the_mean() -> None:
    x, branch = torch.zeros(1000, 301), torch.ones(1000, 301)
    torch.manual_seed(0)
    out = kernels.dropout_add(x, branch, 0.1)
    torch.manual_seed(0)
    assert torch.equal(out, kernels.dropout_add(x, branch, 0.1))
    assert len(set(out.flatten().tolist())) == 2
    assert (out == 0).float().mean().item() == pytest.approx(0.1, abs=0.003)
    assert out.mean().item() == pytest.approx(1, abs=0.003)
    rows, columns = (out == 0).float().mean(1), (out == 0).float().mean(0)
    assert max(rows.std().item(), columns.std().item() * (1000 / 301) ** 0.5) < 0.02


def test_a_dropped_element_has_no_gradient() -> None:
    branch = random(50, 7)
    out, gradient = gradients(
        lambda branch: kernels.dropout_add(torch.zeros(50, 7), branch, 0.5), branch
    )
    assert ((out == 0) == (gradient == 0)).all()
