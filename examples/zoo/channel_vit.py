"""ChannelViT: every patch of every image channel is a token.

Bao, Sivanandan, Karaletsos, "Channel Vision Transformers: An Image Is Worth 1 x 16 x 16 Words", ICLR 2024.
One patch projection is shared by all channels (a Conv3d of depth 1); what a channel is, an embedding tells. Images may
hold any subset of the channels. Simplified: no hierarchical channel sampling, which is of training only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo import _truth
from zoo._layers import TransformerLayer, seeded_normal


@dataclass(frozen=True)
class Sizes:
    channels: int = 3
    known_channels: int = 5
    grid: int = 2
    patch: int = 4
    heads: int = 4
    head_dim: int = 8
    hidden: int = 48
    depth: int = 2
    classes: int = 7

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


class ChannelViT(nn.Module):
    """image [B, channels, h*p, w*p], channel_ids [channels] -> class scores [B, classes]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        kernel = (1, sizes.patch, sizes.patch)
        self.patch_embedding = nn.Conv3d(1, sizes.width, kernel, stride=kernel)
        self.channel_embedding = nn.Embedding(sizes.known_channels, sizes.width)
        self.position = nn.Parameter(torch.randn(1, sizes.width, 1, sizes.grid, sizes.grid))
        self.class_token = nn.Parameter(torch.randn(1, 1, sizes.width))
        self.blocks = nn.ModuleList(
            TransformerLayer(sizes.width, sizes.heads, sizes.hidden) for _ in range(sizes.depth)
        )
        self.norm = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.classes)

    def forward(self, image: Tensor, channel_ids: Tensor) -> Tensor:
        grid = self.patch_embedding(image.unsqueeze(1)) + self.position  # [B, C, channels, h, w]
        grid = grid + self.channel_embedding(channel_ids).t()[:, :, None, None]
        tokens = grid.flatten(2).transpose(1, 2)  # [B, channels*h*w, C]
        x = torch.cat([self.class_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


def build(**sizes: int) -> nn.Module:
    return ChannelViT(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    s = Sizes(**sizes)
    side = s.grid * s.patch
    ids = torch.randperm(s.known_channels, generator=torch.Generator().manual_seed(seed))
    return {"image": seeded_normal(seed, batch, s.channels, side, side), "channel_ids": ids[: s.channels]}


def truth(**sizes: int) -> _truth.Truth:
    s = Sizes(**sizes)
    return {
        "attention": [_truth.attention(f"blocks.{i}.attention", s.heads, s.head_dim) for i in range(s.depth)],
        "mlp": [_truth.mlp(f"blocks.{i}.mlp", s.hidden) for i in range(s.depth)],
    }


TRUTH = truth()
DYNAMIC = {"image": {0: "batch", 1: "channels"}, "channel_ids": {0: "channels"}}
RESIZED = {"channels": 2}
COLLIDING = {"channels": 3, "known_channels": 4, "grid": 1, "heads": 4, "head_dim": 4, "hidden": 16, "classes": 4}
