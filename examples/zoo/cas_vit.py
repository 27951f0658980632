"""CAS-ViT: an additive token mixer made of convolutions and gates only.

Zhang et al., "CAS-ViT: Convolutional Additive Self-attention Vision Transformers for Efficient Mobile Applications",
2024. Query and key are each gated over space, then over channels; their sum, not their product, meets the value.
Simplified: one stage, no layer scale.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from zoo import _truth
from zoo._layers import seeded_normal


@dataclass(frozen=True)
class Sizes:
    side: int = 16
    width: int = 24
    hidden: int = 40
    depth: int = 2
    classes: int = 7


def depthwise(width: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, 3, padding=1, groups=width)


class SpatialGate(nn.Module):
    """x * sigmoid(one map for all channels); [B, C, h, w] -> [B, C, h, w]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Sequential(
            depthwise(width), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 1, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.map(x)


class ChannelGate(nn.Module):
    """x * sigmoid(projection of the mean over space); [B, C, h, w] -> [B, C, h, w]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1, bias=False), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class AdditiveTokenMixer(nn.Module):
    """depthwise(gates(q) + gates(k)) * v, projected; [B, C, h, w] -> [B, C, h, w]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(width, 3 * width, 1, bias=False)
        self.query_gates = nn.Sequential(SpatialGate(width), ChannelGate(width))
        self.key_gates = nn.Sequential(SpatialGate(width), ChannelGate(width))
        self.context = depthwise(width)
        self.output = depthwise(width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, dim=1)
        return self.output(self.context(self.query_gates(query) + self.key_gates(key)) * value)


class Block(nn.Module):
    """Local perception, additive mixing, MLP, each with a residual; [B, C, h, w] -> [B, C, h, w]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.local = nn.Sequential(
            nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), depthwise(width), nn.GELU(), nn.Conv2d(width, width, 1)
        )
        self.mixer_norm = nn.BatchNorm2d(width)
        self.mixer = AdditiveTokenMixer(width)
        self.mlp_norm = nn.BatchNorm2d(width)
        self.mlp = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.GELU(), nn.Conv2d(hidden, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.local(x)
        x = x + self.mixer(self.mixer_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class CasViT(nn.Module):
    """image [B, 3, side, side] -> class scores [B, classes]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        half = sizes.width // 2
        self.stem = nn.Sequential(
            nn.Conv2d(3, half, 3, stride=2, padding=1),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, sizes.width, 3, stride=2, padding=1),
            nn.BatchNorm2d(sizes.width),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(*(Block(sizes.width, sizes.hidden) for _ in range(sizes.depth)))
        self.norm = nn.BatchNorm2d(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(image))).mean((2, 3)))


def build(**sizes: int) -> nn.Module:
    return CasViT(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    side = Sizes(**sizes).side
    return {"image": seeded_normal(seed, batch, 3, side, side)}


def truth(**sizes: int) -> _truth.Truth:
    s = Sizes(**sizes)
    # The mixer has a query, a key and a value, but neither scores nor softmax.
    return {"attention": [], "mlp": [_truth.mlp(f"blocks.{i}.mlp", s.hidden) for i in range(s.depth)]}


TRUTH = truth()
DYNAMIC = {"image": {0: "batch"}}
COLLIDING = {"side": 16, "width": 4, "hidden": 4, "classes": 4}
