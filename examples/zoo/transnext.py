"""TransNeXt: aggregated attention and a convolutional GLU.

Shi, "TransNeXt: Robust Foveal Visual Perception for Vision Transformers", CVPR 2024.
A query sees the pixels around it and all cells of a pooled grid under one softmax: cosine similarities, a temperature
through softplus that grows with the number of keys, relative positions for the neighbours, and for the pooled cells a
bias that an MLP makes from log-spaced coordinates. Learned tokens are added to the local weights after the softmax.
Simplified: one stage; the plain form of the attention, not the paper's CUDA extension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import _truth
from zoo._layers import merge_heads, seeded_normal, split_heads

WINDOW = 3
NEIGHBOURS = WINDOW * WINDOW


@dataclass(frozen=True)
class Sizes:
    grid: int = 6
    pooled: int = 3
    heads: int = 4
    head_dim: int = 8
    hidden: int = 24
    depth: int = 2
    classes: int = 7

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


def relative_coordinates(grid: int, pooled: int) -> Tensor:
    """Offsets of every pooled cell from every pixel, in [-8, 8], log-spaced: [grid*grid, pooled*pooled, 2]."""

    def centres(n: int) -> Tensor:
        line = (torch.arange(n, dtype=torch.float32) + 0.5) * grid / n
        return torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).flatten(0, 1)

    offsets = 8.0 * (centres(grid)[:, None] - centres(pooled)[None]) / max(grid - 1, 1)
    return torch.sign(offsets) * torch.log2(offsets.abs() + 1.0) / 3.0


class AggregatedAttention(nn.Module):
    """x [B, h*w, C] -> [B, h*w, C]; scores [B, H, h*w, 9 + P] for P pooled cells."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        width, heads, head_dim, n_tokens = sizes.width, sizes.heads, sizes.head_dim, sizes.grid**2
        self.query = nn.Linear(width, width)
        self.local_key_value = nn.Linear(width, 2 * width)
        self.pooled_projection = nn.Conv2d(width, width, 1)
        self.pooled_norm = nn.LayerNorm(width)
        self.pooled_key_value = nn.Linear(width, 2 * width)
        self.query_embedding = nn.Parameter(0.5 * torch.randn(heads, 1, head_dim))
        self.temperature = nn.Parameter(torch.rand(heads, 1, 1) + 0.5)
        self.local_position = nn.Parameter(torch.randn(heads, 1, NEIGHBOURS))
        self.learned_tokens = nn.Parameter(0.3 * torch.randn(heads, head_dim, NEIGHBOURS))
        self.learned_bias = nn.Parameter(0.3 * torch.randn(heads, 1, NEIGHBOURS))
        self.position_mlp = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, heads))
        self.output = nn.Linear(width, width)
        self.register_buffer("coordinates", relative_coordinates(sizes.grid, sizes.pooled))
        ones = torch.ones(1, 1, sizes.grid, sizes.grid)
        outside = F.unfold(ones, WINDOW, padding=WINDOW // 2).reshape(NEIGHBOURS, n_tokens).t() == 0
        self.register_buffer("outside", outside)
        n_keys = (~outside).sum(-1, keepdim=True) + sizes.pooled**2
        self.register_buffer("length_scale", n_keys.float().log())

    def forward(self, x: Tensor) -> Tensor:
        unit_query = F.normalize(split_heads(self.query(x), self.sizes.heads), dim=-1)
        query = (unit_query + self.query_embedding) * F.softplus(self.temperature) * self.length_scale
        local_key, local_value = self._neighbours(x)
        local = (query.unsqueeze(-2) @ local_key).squeeze(-2) + self.local_position
        local = local.masked_fill(self.outside, float("-inf"))
        pooled_key, pooled_value = self._pool(x)
        bias = self.position_mlp(self.coordinates).permute(2, 0, 1)  # [H, h*w, P]
        pooled = query @ pooled_key.transpose(-2, -1) + bias
        weights = torch.cat([local, pooled], dim=-1).softmax(dim=-1)
        local, pooled = weights.split([NEIGHBOURS, self.sizes.pooled**2], dim=-1)
        local = local + unit_query @ self.learned_tokens + self.learned_bias
        mixed = (local.unsqueeze(-2) @ local_value.transpose(-2, -1)).squeeze(-2) + pooled @ pooled_value
        return self.output(merge_heads(mixed))

    def _neighbours(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (unit length) and values of the 3x3 pixels around each: two of [B, H, h*w, D, 9]."""
        s = self.sizes
        key, value = self.local_key_value(x).chunk(2, dim=-1)
        key = F.normalize(key.unflatten(-1, (s.heads, s.head_dim)), dim=-1).flatten(-2)
        grid = torch.cat([key, value], dim=-1).transpose(1, 2).unflatten(2, (s.grid, s.grid))
        patches = F.unfold(grid, WINDOW, padding=WINDOW // 2)  # [B, 2*C*9, h*w]
        patches = patches.reshape(-1, 2 * s.heads, s.head_dim, NEIGHBOURS, s.grid**2).permute(0, 1, 4, 2, 3)
        local_key, local_value = patches.chunk(2, dim=1)
        return local_key, local_value

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (unit length) and values of the pooled grid: two of [B, H, P, D]."""
        s = self.sizes
        grid = F.gelu(self.pooled_projection(x.transpose(1, 2).unflatten(2, (s.grid, s.grid))))
        cells = F.adaptive_avg_pool2d(grid, (s.pooled, s.pooled)).flatten(2).transpose(1, 2)
        key, value = self.pooled_key_value(self.pooled_norm(cells)).chunk(2, dim=-1)
        return F.normalize(split_heads(key, s.heads), dim=-1), split_heads(value, s.heads)


class ConvolutionalGLU(nn.Module):
    """gelu(depthwise(a)) * b for the halves a, b of one projection; [B, h*w, C] -> [B, h*w, C]."""

    def __init__(self, width: int, hidden: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.up = nn.Linear(width, 2 * hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        gate = self.depthwise(gate.transpose(1, 2).unflatten(2, (self.grid, self.grid)))
        return self.down(F.gelu(gate.flatten(2).transpose(1, 2)) * value)


class Block(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(sizes.width)
        self.attention = AggregatedAttention(sizes)
        self.mlp_norm = nn.LayerNorm(sizes.width)
        self.mlp = ConvolutionalGLU(sizes.width, sizes.hidden, sizes.grid)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class TransNeXt(nn.Module):
    """image [B, 3, 2*h, 2*w] -> class scores [B, classes]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, sizes.width, 3, stride=2, padding=1)
        self.stem_norm = nn.LayerNorm(sizes.width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(image).flatten(2).transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def build(**sizes: int) -> nn.Module:
    return TransNeXt(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    side = 2 * Sizes(**sizes).grid
    return {"image": seeded_normal(seed, batch, 3, side, side)}


def truth(**sizes: int) -> _truth.Truth:
    s = Sizes(**sizes)
    site = {"kind": "aggregated", "mask": "border+bias"}
    return {
        "attention": [_truth.attention(f"blocks.{i}.attention", s.heads, s.head_dim, **site) for i in range(s.depth)],
        "mlp": [_truth.mlp(f"blocks.{i}.mlp", s.hidden, gated=True) for i in range(s.depth)],
    }


TRUTH = truth()
DYNAMIC = {"image": {0: "batch"}}
COLLIDING = {"grid": 2, "pooled": 2, "heads": 4, "head_dim": 4, "hidden": 16, "classes": 4}
