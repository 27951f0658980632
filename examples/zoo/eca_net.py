"""ECA-Net: channel attention by a convolution that slides over the channels.

Wang et al., "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks", CVPR 2020.
The mean of each channel is a sequence of length C, a short Conv1d over it and a sigmoid give the gates. The order of
the channels therefore matters: removing one shifts its neighbours. Simplified: basic residual blocks, one stage.
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
    side: int = 12
    width: int = 16
    kernel: int = 3
    """Odd: neighbouring channels that a gate depends on."""
    depth: int = 2
    classes: int = 7


class EfficientChannelAttention(nn.Module):
    """x * gate; [B, C, h, w] -> [B, C, h, w]."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.slide = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.slide(x.mean((2, 3)).unsqueeze(1)).sigmoid()  # [B, 1, C]
        return x * gate.transpose(1, 2).unsqueeze(-1).expand_as(x)


class Block(nn.Module):
    """[B, C, h, w] -> [B, C, h, w]."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.first_norm, self.second_norm = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.attention = EfficientChannelAttention(kernel)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(x + self.attention(self.second_norm(self.second(y))))


class EcaNet(nn.Module):
    """image [B, 3, side, side] -> class scores [B, classes]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, sizes.width, 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(sizes.width)
        self.blocks = nn.Sequential(*(Block(sizes.width, sizes.kernel) for _ in range(sizes.depth)))
        self.head = nn.Linear(sizes.width, sizes.classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.stem_norm(self.stem(image))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def build(**sizes: int) -> nn.Module:
    return EcaNet(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    side = Sizes(**sizes).side
    return {"image": seeded_normal(seed, batch, 3, side, side)}


def truth(**sizes: int) -> _truth.Truth:
    Sizes(**sizes)
    # Attention in name only: a gate from a convolution, no queries, keys or softmax.
    return {"attention": [], "mlp": []}


TRUTH = truth()
DYNAMIC = {"image": {0: "batch"}}
COLLIDING = {"side": 8, "width": 4, "classes": 4}
