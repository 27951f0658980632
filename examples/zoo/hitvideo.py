"""HiTVideo: a causal 3-D convolutional video codec with coarse and fine layers of codes.

Zhou et al., "HiTVideo: Hierarchical Tokenizers for Enhancing Text-to-Video Generation with Autoregressive Large
Language Models", 2025. Convolutions pad the past only; the coarsest layer codes a pooled latent, each finer one what is
left, and the upsampled codes are added up. Simplified, from the paper's abstract: two layers, few channels, zeros as
the past.
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
    frames: int = 4
    """Even: time is halved once."""
    side: int = 16
    """A multiple of 8: space is halved twice, and once more for the coarse codes."""
    channels: int = 4
    codes: int = 12
    code_width: int = 6


class CausalConv3d(nn.Module):
    """A frame depends on itself and the past; [B, C, T, h, w] -> [B, C', T / time_stride, h / stride, w / stride]."""

    def __init__(self, channels: int, out_channels: int, time_stride: int = 1, stride: int = 1) -> None:
        super().__init__()
        strides = (time_stride, stride, stride)
        self.past = 3 - time_stride
        self.convolution = nn.Conv3d(channels, out_channels, 3, stride=strides, padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(F.pad(x, (0, 0, 0, 0, self.past, 0)))


class FrameNorm(nn.Module):
    """Group norm of each frame alone: statistics over time would let the past see the future; [B, C, T, h, w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, channels)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2)
        return self.norm(frames.flatten(0, 1)).unflatten(0, (-1, x.shape[2])).transpose(1, 2)


class Residual(nn.Module):
    """[B, C, T, h, w] -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(FrameNorm(channels), nn.SiLU(), CausalConv3d(channels, channels)),
            *(FrameNorm(channels), nn.SiLU(), CausalConv3d(channels, channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Upsample(nn.Module):
    """Every pixel (and every frame, with `time`) repeated, then a convolution."""

    def __init__(self, channels: int, out_channels: int, time: bool) -> None:
        super().__init__()
        self.scale = (2.0 if time else 1.0, 2.0, 2.0)
        self.convolution = CausalConv3d(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(F.interpolate(x, scale_factor=self.scale, mode="nearest"))


class CodeLayer(nn.Module):
    """Nearest code of each position; x [B, W, T, h, w] -> values of the same shape, indices [B, T, h, w]."""

    def __init__(self, codes: int, code_width: int, scale: float) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(codes, code_width) * scale)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.permute(0, 2, 3, 4, 1)
        index = (self.codebook.square().sum(-1) - 2 * flat @ self.codebook.t()).argmin(-1)
        return F.embedding(index, self.codebook).permute(0, 4, 1, 2, 3), index


class HiTVideo(nn.Module):
    """video [B, 3, T, h, w] -> reconstruction (same shape), coarse and fine code indices."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        n = sizes.channels
        self.encoder = nn.Sequential(
            CausalConv3d(3, n),
            Residual(n),
            CausalConv3d(n, 2 * n, time_stride=2, stride=2),
            Residual(2 * n),
            CausalConv3d(2 * n, sizes.code_width, stride=2),
        )
        self.coarse = CodeLayer(sizes.codes, sizes.code_width, 1.0)
        self.fine = CodeLayer(sizes.codes, sizes.code_width, 0.7)
        self.decoder = nn.Sequential(
            Upsample(sizes.code_width, 2 * n, time=False),
            Residual(2 * n),
            Upsample(2 * n, n, time=True),
            Residual(n),
            CausalConv3d(n, 3),
        )

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latent = self.encoder(video)
        coarse, coarse_index = self.coarse(F.avg_pool3d(latent, (1, 2, 2)))
        values = F.interpolate(coarse, scale_factor=(1.0, 2.0, 2.0), mode="nearest")
        fine, fine_index = self.fine(latent - values)
        return self.decoder(values + fine), coarse_index, fine_index


def build(**sizes: int) -> nn.Module:
    return HiTVideo(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    s = Sizes(**sizes)
    return {"video": seeded_normal(seed, batch, 3, s.frames, s.side, s.side)}


def truth(**sizes: int) -> _truth.Truth:
    Sizes(**sizes)
    return {"attention": [], "mlp": []}


TRUTH = truth()
DYNAMIC = {"video": {0: "batch"}}
COLLIDING = {"frames": 4, "side": 8, "channels": 4, "codes": 4, "code_width": 4}
