"""A peer: the textbook way to fine-tune. Random batches padded to their longest example, logits at
every position, targets outside the reply ignored, AdamW over all weights, float32 on a CPU."""

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import workload
from benchmarks.workload import SHAPE, Step

IGNORED = -100
ENDS = {"embeddings": "embed_tokens", "head": "lm_head"}


class Block(nn.Module):
    """LLaMA's, written plainly: rotary positions as complex numbers, PyTorch's fused attention."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        width, inner = SHAPE.hidden_size, SHAPE.intermediate_size
        self.attention_norm, self.mlp_norm = (nn.RMSNorm(width, SHAPE.rms_norm_eps) for _ in "12")
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in "12")
        self.down = nn.Linear(inner, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rotations: Tensor) -> Tensor:
        B, T, D = x.shape
        heads = self.qkv(self.attention_norm(x)).view(B, T, 3, -1, SHAPE.head_dim)
        q, k, v = heads.transpose(1, 3).unbind(2)  # (B, H, T, K)
        seen = F.scaled_dot_product_attention(
            rotate(q, rotations), rotate(k, rotations), v, is_causal=True
        )
        x = x + self.dropout(self.out(seen.transpose(1, 2).reshape(B, T, D)))
        h = self.mlp_norm(x)
        return x + self.dropout(self.down(F.silu(self.gate(h)) * self.up(h)))  # type: ignore[no-any-return]


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Pairs (i, i + K/2) of x (B, H, T, K) as complex numbers times those of (T, K/2)."""
    pairs = torch.view_as_complex(x.view(*x.shape[:-1], 2, -1).transpose(-1, -2).contiguous())
    return torch.view_as_real(pairs * rotations).transpose(-1, -2).flatten(-2)


class Textbook(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(SHAPE.vocab_size, SHAPE.hidden_size)
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(SHAPE.num_hidden_layers))
        self.norm = nn.RMSNorm(SHAPE.hidden_size, SHAPE.rms_norm_eps)
        self.head = nn.Linear(SHAPE.hidden_size, SHAPE.vocab_size, bias=False)
        exponents = torch.arange(0, SHAPE.head_dim, 2) / SHAPE.head_dim
        angles = torch.arange(1024)[:, None] * SHAPE.rope_theta**-exponents
        self.rotations = torch.polar(torch.ones_like(angles), angles)
        self.start_as_ours()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embeddings(ids)
        for block in self.blocks:
            x = block(x, self.rotations[: ids.shape[1]])
        return self.head(self.norm(x))  # type: ignore[no-any-return]

    def start_as_ours(self) -> None:
        """The same first weights, so that the loss curves can be compared."""
        ours = workload.new_model(0.0).state_dict()
        state = {f"{mine}.weight": ours[f"{theirs}.weight"] for mine, theirs in ENDS.items()}
        for i in range(SHAPE.num_hidden_layers):
            attention = f"layers.{i}.self_attn."
            qkv = [ours[f"{attention}{name}_proj.weight"] for name in "qkv"]
            state[f"blocks.{i}.qkv.weight"] = torch.cat(qkv)
            state[f"blocks.{i}.out.weight"] = ours[f"{attention}o_proj.weight"]
            for name in ("gate", "up", "down"):
                state[f"blocks.{i}.{name}.weight"] = ours[f"layers.{i}.mlp.{name}_proj.weight"]
        self.load_state_dict(state, strict=False)  # norms start at one


def train(count: int, dropout: float) -> list[Step]:
    """The first `count` steps."""
    model = Textbook(dropout).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    criterion = nn.CrossEntropyLoss(ignore_index=IGNORED)
    measured = []
    for examples in workload.steps(count):
        started = time.perf_counter()
        rows = [example(int(i)) for i in examples]
        pad = nn.utils.rnn.pad_sequence
        x = pad([ids[:-1] for ids, _ in rows], batch_first=True, padding_value=workload.PAD_ID)
        y = pad([labels[1:] for _, labels in rows], batch_first=True, padding_value=IGNORED)
        loss = criterion(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        real = sum(len(ids) for ids, _ in rows)
        measured.append(Step(real, time.perf_counter() - started, loss.item()))
    return measured


def example(index: int) -> tuple[Tensor, Tensor]:
    """Ids and labels of an example; a label outside the reply is IGNORED."""
    tokens = workload.tokens()
    span = slice(tokens.starts[index], tokens.starts[index + 1])
    ids = torch.tensor(tokens.ids[span].astype("int64"))
    mask = torch.tensor(tokens.mask[span]).bool()
    return ids, ids.masked_fill(~mask, IGNORED)
