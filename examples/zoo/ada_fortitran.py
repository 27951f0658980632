"""AdaFortiTran: OFDM channel estimation, pilots to the whole grid, conditioned on the state of the channel.

Guler, Jafarkhani, "AdaFortiTran: An Adaptive Transformer Model for Robust OFDM Channel Estimation", 2025.
Pilots are upsampled to subcarriers x symbols by a linear layer, enhanced by convolutions, cut into patches; what three
MLPs make of SNR, delay spread and Doppler shift is concatenated to each patch along the features; an encoder, patches
folded back, a refining convolution. Real and imaginary parts go through the same weights, as two entries of the batch.
Simplified: small convolutions, a residual around the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import _truth
from zoo._layers import TransformerLayer, seeded_normal


@dataclass(frozen=True)
class Sizes:
    pilots: int = 10
    patch_rows: int = 4
    patch_columns: int = 5
    patch_height: int = 3
    patch_width: int = 2
    heads: int = 4
    head_dim: int = 4
    hidden: int = 24
    depth: int = 2

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def patch(self) -> tuple[int, int]:
        return self.patch_height, self.patch_width

    @property
    def grid(self) -> tuple[int, int]:
        return self.patch_rows * self.patch_height, self.patch_columns * self.patch_width


class Condition(nn.Module):
    """A number for each patch from one number: [B, 1] -> [B, P, 1]."""

    def __init__(self, n_patches: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(1, 8), nn.Linear(8, n_patches)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x))).unsqueeze(-1)


def enhancer(channels: int) -> nn.Sequential:
    """[B, 1, h, w] -> [B, 1, h, w]."""
    return nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, 1, 3, padding=1))


class AdaFortiTran(nn.Module):
    """pilots [B, 2, pilots] (real, imaginary), conditions [B, 3] -> the channel [B, 2, subcarriers, symbols]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        n_patches = sizes.patch_rows * sizes.patch_columns
        patch_values = sizes.patch_height * sizes.patch_width
        self.upsample = nn.Linear(sizes.pilots, sizes.grid[0] * sizes.grid[1])
        self.enhance, self.refine = enhancer(6), enhancer(6)
        self.conditions = nn.ModuleList(Condition(n_patches) for _ in range(3))
        self.embedding = nn.Linear(patch_values + 3, sizes.width)
        self.position = nn.Parameter(torch.randn(n_patches, sizes.width))
        self.blocks = nn.ModuleList(
            TransformerLayer(sizes.width, sizes.heads, sizes.hidden) for _ in range(sizes.depth)
        )
        self.norm = nn.LayerNorm(sizes.width)
        self.to_patch = nn.Linear(sizes.width, patch_values)

    def forward(self, pilots: Tensor, conditions: Tensor) -> Tensor:
        grid = self.upsample(pilots).flatten(0, 1).unflatten(1, (1, *self.sizes.grid))  # [2*B, 1, h, w]
        grid = grid + self.enhance(grid)
        patches = F.unfold(grid, self.sizes.patch, stride=self.sizes.patch).transpose(1, 2)  # [2*B, P, values]
        state = torch.cat([part(conditions[:, i : i + 1]) for i, part in enumerate(self.conditions)], dim=-1)
        state = state.unsqueeze(1).expand(-1, 2, -1, -1).flatten(0, 1)
        x = self.embedding(torch.cat([patches, state], dim=-1)) + self.position
        for block in self.blocks:
            x = block(x)
        patches = patches + self.to_patch(self.norm(x))
        grid = F.fold(patches.transpose(1, 2), self.sizes.grid, self.sizes.patch, stride=self.sizes.patch)
        return (grid + self.refine(grid)).unflatten(0, (-1, 2)).squeeze(2)


def build(**sizes: int) -> nn.Module:
    return AdaFortiTran(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    pilots = Sizes(**sizes).pilots
    return {"pilots": seeded_normal(seed, batch, 2, pilots), "conditions": seeded_normal(seed + 1, batch, 3)}


def truth(**sizes: int) -> _truth.Truth:
    s = Sizes(**sizes)
    return {
        "attention": [
            _truth.attention(f"blocks.{i}.attention", s.heads, s.head_dim, axis="patch") for i in range(s.depth)
        ],
        "mlp": [_truth.mlp(f"blocks.{i}.mlp", s.hidden) for i in range(s.depth)],
    }


TRUTH = truth()
DYNAMIC = {"pilots": {0: "batch"}, "conditions": {0: "batch"}}
COLLIDING = {
    "pilots": 4,
    "patch_rows": 2,
    "patch_columns": 2,
    "patch_height": 2,
    "patch_width": 2,
    "heads": 4,
    "head_dim": 4,
    "hidden": 16,
}
