"""DHVT: head tokens in the attention, and a feed-forward with a depthwise convolution and a gated class token.

Lu et al., "Bridging the Gap Between Vision Transformers and Convolutional Neural Networks on Small Datasets",
NeurIPS 2022. Each head adds one token, its share of the mean token, projected; after the attention the head tokens are
averaged into the class token. DAFF = dynamic aggregation feed forward. Simplified: one stage, a shorter stem.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import _truth
from zoo._layers import merge_heads, seeded_normal, split_heads


@dataclass(frozen=True)
class Sizes:
    grid: int = 4
    heads: int = 4
    head_dim: int = 8
    hidden: int = 48
    depth: int = 2
    classes: int = 7

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


class Affine(nn.Module):
    """x * gain + bias per channel; [B, C, h, w] -> [B, C, h, w]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain[:, None, None] + self.bias[:, None, None]


class HeadInteractingAttention(nn.Module):
    """x [B, 1 + h*w, C] -> the same; the scores are [B, H, 1 + h*w + H, 1 + h*w + H]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.head_projection = nn.Linear(sizes.head_dim, sizes.width)
        self.head_norm = nn.LayerNorm(sizes.head_dim)
        self.head_position = nn.Parameter(torch.randn(1, sizes.heads, sizes.width))
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width)
        self.output = nn.Linear(sizes.width, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        n_tokens = x.shape[1]
        means = self.head_projection(split_heads(x, self.heads).mean(2))  # [B, H, C]
        head_tokens = F.gelu(self.head_norm(means.unflatten(-1, (self.heads, -1)))).flatten(2)
        x = torch.cat([x, head_tokens + self.head_position], dim=1)
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [3, B, H, T, D]
        query, key, value = qkv.unbind(0)
        weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)
        x = self.output(merge_heads(weights @ value))
        class_token, patches, head_tokens = x.split([1, n_tokens - 1, self.heads], dim=1)
        return torch.cat([class_token + head_tokens.mean(1, keepdim=True), patches], dim=1)


class DynamicAggregation(nn.Module):
    """Convolutions on the patches; their mean gates the class token; [B, 1 + h*w, C] -> the same."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.grid = sizes.grid
        hidden = sizes.hidden
        self.up = nn.Sequential(nn.Conv2d(sizes.width, hidden, 1), nn.BatchNorm2d(hidden), nn.GELU())
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.depthwise_norm = nn.BatchNorm2d(hidden)
        self.down = nn.Sequential(nn.Conv2d(hidden, sizes.width, 1), nn.BatchNorm2d(sizes.width))
        self.squeeze = nn.Linear(sizes.width, max(sizes.width // 4, 1))
        self.excite = nn.Linear(max(sizes.width // 4, 1), sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        class_token, patches = x[:, :1], x[:, 1:]
        grid = self.up(patches.transpose(1, 2).unflatten(2, (self.grid, self.grid)))
        grid = self.down(F.gelu(self.depthwise_norm(grid + self.depthwise(grid))))
        gate = self.excite(F.gelu(self.squeeze(grid.mean((2, 3)))))
        return torch.cat([class_token * gate.unsqueeze(1), grid.flatten(2).transpose(1, 2)], dim=1)


class Block(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(sizes.width)
        self.attention = HeadInteractingAttention(sizes)
        self.mlp_norm = nn.LayerNorm(sizes.width)
        self.mlp = DynamicAggregation(sizes)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Dhvt(nn.Module):
    """image [B, 3, 4*h, 4*w] -> class scores [B, classes]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        half = sizes.width // 2
        self.stem = nn.Sequential(
            Affine(3),
            nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.GELU(),
            nn.Conv2d(half, sizes.width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(sizes.width),
            Affine(sizes.width),
        )
        self.class_token = nn.Parameter(torch.randn(1, 1, sizes.width))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.classes)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.stem(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def build(**sizes: int) -> nn.Module:
    return Dhvt(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    side = 4 * Sizes(**sizes).grid
    return {"image": seeded_normal(seed, batch, 3, side, side)}


def truth(**sizes: int) -> _truth.Truth:
    s = Sizes(**sizes)
    return {
        "attention": [_truth.attention(f"blocks.{i}.attention", s.heads, s.head_dim) for i in range(s.depth)],
        "mlp": [_truth.mlp(f"blocks.{i}.mlp", s.hidden) for i in range(s.depth)],
    }


TRUTH = truth()
DYNAMIC = {"image": {0: "batch"}}
COLLIDING = {"grid": 2, "heads": 4, "head_dim": 4, "hidden": 4, "classes": 4}
