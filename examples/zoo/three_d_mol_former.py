"""3DMolFormer: a GPT with two channels, tokens and the numbers that some tokens stand for.

Hu et al., "3DMolFormer: A Dual-channel Framework for Structure-based Drug Discovery", ICLR 2025.
Coordinates and scores are one token <num> each; the value multiplies its embedding, and a second head predicts values
beside the one that predicts tokens. Simplified: GPT-2 layers at small size; the value at other tokens counts as one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import _truth
from zoo._layers import merge_heads, seeded_ids, seeded_normal, split_heads

NUMBER = 1
"""The id of <num>."""


@dataclass(frozen=True)
class Sizes:
    tokens: int = 7
    positions: int = 16
    vocabulary: int = 20
    heads: int = 4
    head_dim: int = 8
    hidden: int = 48
    depth: int = 2

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


class CausalAttention(nn.Module):
    """GPT-2's: explicit scores, the future filled with the lowest float; x [B, T, C], past [T, T] -> [B, T, C]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).split(x.shape[-1], dim=-1))
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        scores = torch.where(past, scores, torch.finfo(scores.dtype).min)
        return self.output(merge_heads(scores.softmax(-1) @ value))


class GeluTanhFeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.attention = CausalAttention(sizes.width, sizes.heads)
        self.mlp = GeluTanhFeedForward(sizes.width, sizes.hidden)

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), past)
        return x + self.mlp(self.mlp_norm(x))


class ThreeDMolFormer(nn.Module):
    """input_ids, values [B, T] -> token scores [B, T, vocabulary], values [B, T]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.width)
        self.position = nn.Embedding(sizes.positions, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width)
        self.token_head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)
        self.value_head = nn.Linear(sizes.width, 1)

    def forward(self, input_ids: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        factor = torch.where(input_ids == NUMBER, values, 1.0).unsqueeze(-1)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        past = positions[None] <= positions[:, None]
        x = self.embedding(input_ids) * factor + self.position(positions)
        for block in self.blocks:
            x = block(x, past)
        x = self.norm(x)
        return self.token_head(x), self.value_head(x).squeeze(-1)


def build(**sizes: int) -> nn.Module:
    return ThreeDMolFormer(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    s = Sizes(**sizes)
    ids = seeded_ids(seed, s.vocabulary, batch, s.tokens)
    ids[:, ::2] = NUMBER
    return {"input_ids": ids, "values": seeded_normal(seed, batch, s.tokens)}


def truth(**sizes: int) -> _truth.Truth:
    s = Sizes(**sizes)
    paths = [f"blocks.{i}" for i in range(s.depth)]
    return {
        "attention": [_truth.attention(f"{path}.attention", s.heads, s.head_dim, mask="causal") for path in paths],
        "mlp": [_truth.mlp(f"{path}.mlp", s.hidden, activation="gelu-tanh") for path in paths],
    }


TRUTH = truth()
DYNAMIC = {name: {0: "batch", 1: "tokens"} for name in ("input_ids", "values")}
RESIZED = {"tokens": 9}
COLLIDING = {"tokens": 4, "positions": 4, "vocabulary": 4, "heads": 4, "head_dim": 4, "hidden": 16}
