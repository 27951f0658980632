"""xAR: autoregression over cells of an image; inside a cell, flow matching on continuous tokens.

Ren et al., "Beyond Next-Token: Next-X Prediction for Autoregressive Visual Generation", 2025.
A cell is a block of neighbouring tokens. A token sees its own and earlier cells (a block-causal mask of 0 and -inf);
norms are modulated per token by the class and the noise time of its cell (adaLN); positions are rotary in two
dimensions. Simplified: one step of the flow, no cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import _truth
from zoo._layers import merge_heads, seeded_ids, seeded_normal, split_heads


@dataclass(frozen=True)
class Sizes:
    cells: int = 2
    """Cells along each side."""
    cell: int = 2
    """Tokens along each side of a cell."""
    channels: int = 5
    classes: int = 9
    heads: int = 4
    head_dim: int = 8
    """A multiple of 4: half of it turns with the row, half with the column."""
    hidden: int = 48
    depth: int = 2

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def n_tokens(self) -> int:
        return (self.cells * self.cell) ** 2


def cell_order(sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and cell of every token, cell after cell: three of [T]."""
    side = torch.arange(sizes.cells * sizes.cell)
    rows, columns = torch.meshgrid(side, side, indexing="ij")
    cell = (rows // sizes.cell * sizes.cells + columns // sizes.cell).flatten()
    order = cell * sizes.n_tokens + torch.arange(sizes.n_tokens)
    order = order.argsort()
    return rows.flatten()[order], columns.flatten()[order], cell[order]


def rotary_angles(positions: Tensor, n_pairs: int) -> Tensor:
    """[T] -> [T, n_pairs]."""
    frequency = 100.0 ** (-torch.arange(n_pairs) / n_pairs)
    return positions[:, None] * frequency


class RotaryAttention(nn.Module):
    """x [B, T, C] -> [B, T, C]; pairs of neighbouring entries of query and key are turned by the angles [T, D / 2]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        query, key = self._turn(query, cosine, sine), self._turn(key, cosine, sine)
        return self.output(merge_heads(F.scaled_dot_product_attention(query, key, value, attn_mask=mask)))

    @staticmethod
    def _turn(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(-2)


class SwiGlu(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """x, condition [B, T, C] -> [B, T, C]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(sizes.width)
        self.attention = RotaryAttention(sizes.width, sizes.heads)
        self.mlp_norm = nn.RMSNorm(sizes.width)
        self.mlp = SwiGlu(sizes.width, sizes.hidden)
        self.modulation = nn.Linear(sizes.width, 6 * sizes.width)

    def forward(self, x: Tensor, condition: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(F.silu(condition)).chunk(6, dim=-1)
        modulated = self.attention_norm(x) * (1 + scale) + shift
        x = x + gate * self.attention(modulated, cosine, sine, mask)
        return x + mlp_gate * self.mlp(self.mlp_norm(x) * (1 + mlp_scale) + mlp_shift)


class Xar(nn.Module):
    """noised [B, T, channels], cell_time [B, cells^2], class_id [B] -> flow [B, T, channels]; T cell by cell."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.tokens_per_cell = sizes.cell**2
        self.embedding = nn.Linear(sizes.channels, sizes.width)
        self.class_embedding = nn.Embedding(sizes.classes, sizes.width)
        self.time_embedding = nn.Sequential(nn.Linear(2, sizes.width), nn.SiLU(), nn.Linear(sizes.width, sizes.width))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.norm = nn.RMSNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.channels)
        row, column, cell = cell_order(sizes)
        angles = torch.cat([rotary_angles(axis, sizes.head_dim // 4) for axis in (row, column)], dim=-1)
        self.register_buffer("cosine", angles.cos())
        self.register_buffer("sine", angles.sin())
        mask = torch.zeros(sizes.n_tokens, sizes.n_tokens).masked_fill(cell[None] > cell[:, None], float("-inf"))
        self.register_buffer("block_causal", mask)

    def forward(self, noised: Tensor, cell_time: Tensor, class_id: Tensor) -> Tensor:
        time = self.time_embedding(torch.stack([cell_time.sin(), cell_time.cos()], dim=-1))
        condition = (time + self.class_embedding(class_id).unsqueeze(1)).repeat_interleave(self.tokens_per_cell, dim=1)
        x = self.embedding(noised)
        for block in self.blocks:
            x = block(x, condition, self.cosine, self.sine, self.block_causal)
        return self.head(self.norm(x))


def build(**sizes: int) -> nn.Module:
    return Xar(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    s = Sizes(**sizes)
    return {
        "noised": seeded_normal(seed, batch, s.n_tokens, s.channels),
        "cell_time": seeded_normal(seed + 1, batch, s.cells**2).sigmoid(),
        "class_id": seeded_ids(seed, s.classes, batch),
    }


def truth(**sizes: int) -> _truth.Truth:
    s = Sizes(**sizes)
    paths = [f"blocks.{i}" for i in range(s.depth)]
    # Cells of one token each: what is causal among cells is so among tokens.
    mask = "block-causal" if s.cell > 1 else "causal"
    return {
        "attention": [
            _truth.attention(f"{path}.attention", s.heads, s.head_dim, mask=mask, rotary=True) for path in paths
        ],
        "mlp": [_truth.mlp(f"{path}.mlp", s.hidden, activation="silu", gated=True) for path in paths],
    }


TRUTH = truth()
DYNAMIC = {"noised": {0: "batch"}, "cell_time": {0: "batch"}, "class_id": {0: "batch"}}
COLLIDING = {"cells": 2, "cell": 1, "channels": 4, "classes": 4, "heads": 4, "head_dim": 4, "hidden": 16}
