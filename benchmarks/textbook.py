"""A peer: the textbook way to fine-tune. Random batches padded to their longest example, logits at
every position, targets outside the reply ignored, AdamW over all weights; in float32 on a CPU, on a
GPU in bfloat16 under autocast, its blocks compiled."""

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import workload
from benchmarks.workload import SHAPE, Step
from simple_llama.model.config import ModelConfig

IGNORED = -100
ENDS = {"embeddings": "embed_tokens", "head": "lm_head"}


class Block(nn.Module):
    """LLaMA's, written plainly: rotary positions as complex numbers, PyTorch's fused attention."""

    def __init__(self, shape: ModelConfig, dropout: float) -> None:
        super().__init__()
        width, inner = shape.hidden_size, shape.intermediate_size
        self.attention_norm, self.mlp_norm = (nn.RMSNorm(width, shape.rms_norm_eps) for _ in "12")
        self.share = shape.num_attention_heads // shape.num_key_value_heads
        keys = width // self.share
        self.widths = [width, keys, keys]
        self.head_dim = shape.head_dim
        self.qkv = nn.Linear(width, sum(self.widths), bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in "12")
        self.down = nn.Linear(inner, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rotations: Tensor) -> Tensor:
        B, T, D = x.shape
        parts = self.qkv(self.attention_norm(x)).split(self.widths, dim=-1)
        q, k, v = (y.view(B, T, -1, self.head_dim).transpose(1, 2) for y in parts)  # (B, H, T, K)
        q, k = rotate(q, rotations), rotate(k, rotations)
        k, v = (y.repeat_interleave(self.share, dim=1) for y in (k, v))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.out(seen.transpose(1, 2).reshape(B, T, D)))
        h = self.mlp_norm(x)
        return x + self.dropout(self.down(F.silu(self.gate(h)) * self.up(h)))  # type: ignore[no-any-return]


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Pairs (i, i + K/2) of x (B, H, T, K) as complex numbers times those of (T, K/2)."""
    halves = x.float().view(*x.shape[:-1], 2, -1)
    pairs = torch.view_as_complex(halves.transpose(-1, -2).contiguous())
    return torch.view_as_real(pairs * rotations).transpose(-1, -2).flatten(-2).to(x.dtype)


class Textbook(nn.Module):
    rotations: Tensor

    def __init__(self, shape: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.shape = shape
        self.embeddings = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.blocks = nn.ModuleList(Block(shape, dropout) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        if shape.tie_word_embeddings:
            self.head.weight = self.embeddings.weight
        exponents = torch.arange(0, shape.head_dim, 2) / shape.head_dim
        angles = torch.arange(shape.max_position_embeddings)[:, None] * shape.rope_theta**-exponents
        self.register_buffer("rotations", torch.polar(torch.ones_like(angles), angles))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embeddings(ids)
        for block in self.blocks:
            x = block(x, self.rotations[: ids.shape[1]])
        return self.head(self.norm(x))  # type: ignore[no-any-return]

    def start_as_ours(self, device: str) -> None:
        """The same first weights, so that the loss curves can be compared."""
        ours = workload.new_model(0.0, self.shape, device).state_dict()
        state = {f"{mine}.weight": ours[f"{theirs}.weight"] for mine, theirs in ENDS.items()}
        for i in range(self.shape.num_hidden_layers):
            attention = f"layers.{i}.self_attn."
            qkv = [ours[f"{attention}{name}_proj.weight"] for name in "qkv"]
            state[f"blocks.{i}.qkv.weight"] = torch.cat(qkv)
            state[f"blocks.{i}.out.weight"] = ours[f"{attention}o_proj.weight"]
            for name in ("gate", "up", "down"):
                state[f"blocks.{i}.{name}.weight"] = ours[f"layers.{i}.mlp.{name}_proj.weight"]
        self.load_state_dict(state, strict=False)  # norms start at one


def train(
    count: int, dropout: float, shape: ModelConfig = SHAPE, device: str = "cpu"
) -> list[Step]:
    """The first `count` steps."""
    on_cpu = device == "cpu"
    with torch.device(device):
        model = Textbook(shape, dropout).train()
    model.start_as_ours(device)
    if not on_cpu:
        for block in model.blocks:
            block.compile(dynamic=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    criterion = nn.CrossEntropyLoss(ignore_index=IGNORED)
    measured = []
    for examples in workload.steps(count):
        started = time.perf_counter()
        rows = [example(int(i)) for i in examples]
        pad = nn.utils.rnn.pad_sequence
        x = pad([ids[:-1] for ids, _ in rows], batch_first=True, padding_value=workload.PAD_ID)
        y = pad([labels[1:] for _, labels in rows], batch_first=True, padding_value=IGNORED)
        with torch.autocast(device, torch.bfloat16, enabled=not on_cpu):
            logits = model(x.to(device))
            loss = criterion(logits.flatten(0, 1).float(), y.to(device).flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        final = loss.item()
        workload.finish(device)
        real = sum(len(ids) for ids, _ in rows)
        measured.append(Step(real, time.perf_counter() - started, final))
    return measured


def example(index: int) -> tuple[Tensor, Tensor]:
    """Ids and labels of an example; a label outside the reply is IGNORED."""
    tokens = workload.tokens()
    span = slice(tokens.starts[index], tokens.starts[index + 1])
    ids = torch.tensor(tokens.ids[span].astype("int64"))
    mask = torch.tensor(tokens.mask[span]).bool()
    return ids, ids.masked_fill(~mask, IGNORED)
