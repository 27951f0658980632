"""SOFTS: series exchange information through one core, not with each other.

Han, Chen, Ye, Zhan, "SOFTS: Efficient Multivariate Time Series Forecasting with Series-Core Fusion", NeurIPS 2024.
Series are tokens (inverted embedding). STAR = star aggregate-redistribute: an MLP, a softmax over the series that pools
them into a core, and the core concatenated to each series again. Pooling in training is random; this is evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import _truth
from zoo._layers import seeded_normal


@dataclass(frozen=True)
class Sizes:
    series: int = 6
    history: int = 12
    horizon: int = 5
    width: int = 16
    core: int = 10
    hidden: int = 24
    depth: int = 2


class Star(nn.Module):
    """x [B, series, C] -> [B, series, C]."""

    def __init__(self, width: int, core: int) -> None:
        super().__init__()
        self.up, self.to_core = nn.Linear(width, width), nn.Linear(width, core)
        self.merge, self.output = nn.Linear(width + core, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        core = self.to_core(F.gelu(self.up(x)))
        core = (core * core.softmax(dim=1)).sum(dim=1, keepdim=True)
        merged = torch.cat([x, core.expand(-1, x.shape[1], -1)], dim=-1)
        return self.output(F.gelu(self.merge(merged)))


class PointwiseFeedForward(nn.Module):
    """The MLP as two convolutions of kernel 1 over [B, C, series]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Conv1d(width, hidden, 1), nn.Conv1d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x.transpose(1, 2)))).transpose(1, 2)


class Block(nn.Module):
    """Post-norm; [B, series, C] -> [B, series, C]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.star = Star(sizes.width, sizes.core)
        self.star_norm = nn.LayerNorm(sizes.width)
        self.mlp = PointwiseFeedForward(sizes.width, sizes.hidden)
        self.mlp_norm = nn.LayerNorm(sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.star_norm(x + self.star(x))
        return self.mlp_norm(x + self.mlp(x))


class Softs(nn.Module):
    """history [B, T, series] -> forecast [B, horizon, series]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Linear(sizes.history, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.head = nn.Linear(sizes.width, sizes.horizon)

    def forward(self, history: Tensor) -> Tensor:
        mean = history.mean(1, keepdim=True)
        centred = history - mean
        deviation = (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        x = self.embedding((centred / deviation).transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        return self.head(x).transpose(1, 2) * deviation + mean


def build(**sizes: int) -> nn.Module:
    return Softs(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    s = Sizes(**sizes)
    return {"history": seeded_normal(seed, batch, s.history, s.series)}


def truth(**sizes: int) -> _truth.Truth:
    s = Sizes(**sizes)
    # The softmax over the series pools each channel by its own values: there are no queries and keys.
    return {"attention": [], "mlp": [_truth.mlp(f"blocks.{i}.mlp", s.hidden) for i in range(s.depth)]}


TRUTH = truth()
DYNAMIC = {"history": {0: "batch", 2: "series"}}
RESIZED = {"series": 9}
COLLIDING = {"series": 4, "history": 4, "horizon": 4, "width": 4, "core": 4, "hidden": 4}
