"""SpaRTAN: gated multi-order convolutions and wave-like channel aggregation.

"SpaRTAN: Spatial Reinforcement Token-based Aggregation Network for Visual Recognition", 2025.
Channels are split among depthwise kernels of several sizes and dilations, whose outputs a SiLU gate selects; channels
are mixed as waves, amplitude times the cosine and the sine of a phase, in place of a wide MLP. Simplified, from the
paper's abstract: the kernel orders, the split and the form of the phase are ours; one stage.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import _truth
from zoo._layers import seeded_normal

ORDERS = ((3, 1), (5, 1), (3, 3))
"""Kernel size and dilation of each group of channels."""


@dataclass(frozen=True)
class Sizes:
    side: int = 16
    order_width: int = 8
    """Channels per kernel order; the width is three times that."""
    depth: int = 2
    classes: int = 7

    @property
    def width(self) -> int:
        return len(ORDERS) * self.order_width


class MultiOrderConvolution(nn.Module):
    """silu(gate) * silu(depthwise of several orders); [B, C, h, w] -> [B, C, h, w]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.order_width = sizes.order_width
        self.value = nn.Conv2d(sizes.width, sizes.width, 1)
        self.gate = nn.Conv2d(sizes.width, sizes.width, 1)
        self.orders = nn.ModuleList(
            nn.Conv2d(
                sizes.order_width,
                sizes.order_width,
                kernel,
                padding=dilation * (kernel // 2),
                dilation=dilation,
                groups=sizes.order_width,
            )
            for kernel, dilation in ORDERS
        )
        self.output = nn.Conv2d(sizes.width, sizes.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.value(x).split(self.order_width, dim=1)
        mixed = torch.cat([order(part) for order, part in zip(self.orders, parts, strict=True)], dim=1)
        return self.output(F.silu(self.gate(x)) * F.silu(mixed))


class WaveAggregation(nn.Module):
    """Mixes [amplitude * cos(phase), amplitude * sin(phase)] over channels; [B, C, h, w] -> [B, C, h, w]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.amplitude = nn.Conv2d(width, width, 1)
        self.phase = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width))
        self.mix = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        amplitude, phase = self.amplitude(x), self.phase(x)
        return self.mix(torch.cat([amplitude * torch.cos(phase), amplitude * torch.sin(phase)], dim=1))


class Block(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.spatial_norm = nn.BatchNorm2d(sizes.width)
        self.spatial = MultiOrderConvolution(sizes)
        self.channel_norm = nn.BatchNorm2d(sizes.width)
        self.channel = WaveAggregation(sizes.width)
        self.spatial_scale = nn.Parameter(torch.ones(sizes.width))
        self.channel_scale = nn.Parameter(torch.ones(sizes.width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.spatial_scale[:, None, None] * self.spatial(self.spatial_norm(x))
        return x + self.channel_scale[:, None, None] * self.channel(self.channel_norm(x))


class SpaRTAN(nn.Module):
    """image [B, 3, side, side] -> class scores [B, classes]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, sizes.width, 3, stride=2, padding=1), nn.BatchNorm2d(sizes.width), nn.GELU()
        )
        self.blocks = nn.Sequential(*(Block(sizes) for _ in range(sizes.depth)))
        self.head = nn.Linear(sizes.width, sizes.classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


def build(**sizes: int) -> nn.Module:
    return SpaRTAN(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    side = Sizes(**sizes).side
    return {"image": seeded_normal(seed, batch, 3, side, side)}


def truth(**sizes: int) -> _truth.Truth:
    Sizes(**sizes)
    return {"attention": [], "mlp": []}


TRUTH = truth()
DYNAMIC = {"image": {0: "batch"}}
COLLIDING = {"side": 24, "order_width": 4, "classes": 4}
