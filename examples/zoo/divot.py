"""Divot: a video tokenizer, features of frames resampled to a fixed set of tokens by constant queries.

Ge et al., "Divot: Diffusion Powers Video Tokenizer for Comprehension and Generation", CVPR 2025; the resampler is
Perceiver's (Alayrac et al., "Flamingo", NeurIPS 2022). A ViT sees each frame alone; a temporal layer mixes frames at
each position; features are pooled, given 3-D positions, cross-attended by learned queries. Keys are a set: dropping
some changes no shape after. Simplified: the tokenizer half only, without the diffusion decoder; a small ViT stands for
the frozen one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import _truth
from zoo._layers import Attention, FeedForward, TransformerLayer, seeded_normal


@dataclass(frozen=True)
class Sizes:
    frames: int = 3
    grid: int = 4
    patch: int = 4
    queries: int = 5
    heads: int = 4
    head_dim: int = 8
    hidden: int = 48
    depth: int = 2

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


class ResamplerLayer(nn.Module):
    """queries [B, Q, C] over features [B, S, C] -> [B, Q, C]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.query_norm, self.feature_norm = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.attention = Attention(sizes.width, sizes.heads)
        self.mlp_norm = nn.LayerNorm(sizes.width)
        self.mlp = FeedForward(sizes.width, sizes.hidden)

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        queries = queries + self.attention(self.query_norm(queries), self.feature_norm(features))
        return queries + self.mlp(self.mlp_norm(queries))


class Divot(nn.Module):
    """video [B, frames, 3, h*p, w*p] -> tokens [B, Q, C]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        width, pooled = sizes.width, sizes.grid // 2
        self.patch_embedding = nn.Conv2d(3, width, sizes.patch, stride=sizes.patch)
        self.position = nn.Parameter(torch.randn(sizes.grid**2, width))
        self.frame_encoder = self._layers(sizes)
        self.temporal = TransformerLayer(width, sizes.heads, sizes.hidden)
        self.frame_position = nn.Parameter(torch.randn(sizes.frames, 1, 1, width))
        self.row_position = nn.Parameter(torch.randn(pooled, 1, width))
        self.column_position = nn.Parameter(torch.randn(pooled, width))
        self.mixing = TransformerLayer(width, sizes.heads, sizes.hidden)
        self.queries = nn.Parameter(torch.randn(1, sizes.queries, width))
        self.resampler = nn.ModuleList(ResamplerLayer(sizes) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(width)

    @staticmethod
    def _layers(sizes: Sizes) -> nn.ModuleList:
        return nn.ModuleList(TransformerLayer(sizes.width, sizes.heads, sizes.hidden) for _ in range(sizes.depth))

    def forward(self, video: Tensor) -> Tensor:
        features = self.mixing(self.features(video))
        queries = self.queries.expand(features.shape[0], -1, -1)
        for layer in self.resampler:
            queries = layer(queries, features)
        return self.norm(queries)

    def features(self, video: Tensor) -> Tensor:
        """[B, frames, 3, ...] -> [B, frames * pooled cells, C]."""
        frames, grid = self.sizes.frames, self.sizes.grid
        x = self.patch_embedding(video.flatten(0, 1)).flatten(2).transpose(1, 2) + self.position  # [B * frames, P, C]
        for layer in self.frame_encoder:
            x = layer(x)
        x = self.temporal(x.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1))  # [B * P, frames, C]
        x = x.unflatten(0, (-1, grid, grid)).permute(0, 3, 4, 1, 2).flatten(0, 1)  # [B * frames, C, h, w]
        x = F.adaptive_avg_pool2d(x, grid // 2).permute(0, 2, 3, 1).unflatten(0, (-1, frames))
        return (x + self.frame_position + self.row_position + self.column_position).flatten(1, 3)


def build(**sizes: int) -> nn.Module:
    return Divot(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    s = Sizes(**sizes)
    return {"video": seeded_normal(seed, batch, s.frames, 3, s.grid * s.patch, s.grid * s.patch)}


def truth(**sizes: int) -> _truth.Truth:
    s = Sizes(**sizes)
    sites = [
        *((f"frame_encoder.{i}", "self", "patch") for i in range(s.depth)),
        ("temporal", "self", "frame"),
        ("mixing", "self", "token"),
        *((f"resampler.{i}", "cross", "token") for i in range(s.depth)),
    ]
    return {
        "attention": [
            _truth.attention(f"{path}.attention", s.heads, s.head_dim, kind=kind, axis=axis)
            for path, kind, axis in sites
        ],
        "mlp": [_truth.mlp(f"{path}.mlp", s.hidden) for path, _, _ in sites],
    }


TRUTH = truth()
DYNAMIC = {"video": {0: "batch"}}
COLLIDING = {"frames": 4, "grid": 4, "patch": 2, "queries": 4, "heads": 4, "head_dim": 4, "hidden": 16}
