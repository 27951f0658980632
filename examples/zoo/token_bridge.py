"""TokenBridge: continuous latents made discrete channel by channel after training, and generated channel by channel.

Wang et al., "Bridging Continuous and Discrete Tokens for Autoregressive Visual Generation", 2025.
Boundaries are quantiles of the normal distribution, values the means of it between them, so that bucketize and a table
replace a trained codebook. A causal transformer over tokens gives each token a state, from which a small one, causal
over the channels inside the token, gives the index of each channel. Simplified: a small convolutional encoder stands
for the VAE's; teacher forcing, one pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo import _truth
from zoo._layers import TransformerLayer, seeded_normal


@dataclass(frozen=True)
class Sizes:
    grid: int = 3
    channels: int = 5
    """Of the latent."""
    levels: int = 8
    heads: int = 4
    head_dim: int = 8
    hidden: int = 48
    depth: int = 1
    """Over tokens and over channels."""

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


def normal_levels(levels: int) -> tuple[Tensor, Tensor]:
    """Boundaries [levels - 1] of equal probability, and the mean of the distribution in each interval [levels]."""
    quantiles = torch.arange(1, levels, dtype=torch.float64) / levels
    boundaries = torch.erfinv(2 * quantiles - 1) * 2**0.5
    density = torch.exp(-boundaries.square() / 2) / (2 * torch.pi) ** 0.5
    edges = torch.cat([density.new_zeros(1), density, density.new_zeros(1)])
    return boundaries.float(), ((edges[:-1] - edges[1:]) * levels).float()


class LatentQuantizer(nn.Module):
    """x [B, T, channels] -> values and indices, both [B, T, channels]."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        boundaries, values = normal_levels(levels)
        self.register_buffer("boundaries", boundaries)
        self.register_buffer("values", values)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        index = torch.bucketize(x, self.boundaries)
        return self.values[index], index


class ChannelDecoder(nn.Module):
    """states [B, T, C], indices [B, T, channels] -> scores [B, T, channels, levels], each from earlier channels."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sizes.levels, sizes.width)
        self.position = nn.Parameter(torch.randn(sizes.channels, sizes.width))
        self.blocks = nn.ModuleList(
            TransformerLayer(sizes.width, sizes.heads, sizes.hidden) for _ in range(sizes.depth)
        )
        self.norm = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.levels)

    def forward(self, states: Tensor, index: Tensor) -> Tensor:
        n_tokens = states.shape[1]
        earlier = self.embedding(index[..., :-1])
        x = torch.cat([states.unsqueeze(2), earlier], dim=2).flatten(0, 1) + self.position  # [B * T, channels, C]
        for block in self.blocks:
            x = block(x, is_causal=True)
        return self.head(self.norm(x)).unflatten(0, (-1, n_tokens))


class TokenBridge(nn.Module):
    """image [B, 3, 4*h, 4*w] -> quantized latents [B, T, channels], scores [B, T, channels, levels]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(8, sizes.channels, 3, stride=2, padding=1)
        )
        self.quantizer = LatentQuantizer(sizes.levels)
        self.embedding = nn.Linear(sizes.channels, sizes.width)
        self.first = nn.Parameter(torch.randn(1, 1, sizes.width))
        self.position = nn.Parameter(torch.randn(sizes.grid**2, sizes.width))
        self.blocks = nn.ModuleList(
            TransformerLayer(sizes.width, sizes.heads, sizes.hidden) for _ in range(sizes.depth)
        )
        self.channel_decoder = ChannelDecoder(sizes)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        values, index = self.quantizer(self.encoder(image).flatten(2).transpose(1, 2).contiguous())
        earlier = self.embedding(values[:, :-1])
        x = torch.cat([self.first.expand(earlier.shape[0], -1, -1), earlier], dim=1) + self.position
        for block in self.blocks:
            x = block(x, is_causal=True)
        return values, self.channel_decoder(x, index)


def build(**sizes: int) -> nn.Module:
    return TokenBridge(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    side = 4 * Sizes(**sizes).grid
    return {"image": seeded_normal(seed, batch, 3, side, side)}


def truth(**sizes: int) -> _truth.Truth:
    s = Sizes(**sizes)
    parts = [("blocks", "token"), ("channel_decoder.blocks", "channel")]
    sites = [(f"{part}.{i}", axis) for part, axis in parts for i in range(s.depth)]
    return {
        "attention": [
            _truth.attention(f"{path}.attention", s.heads, s.head_dim, mask="causal", axis=axis) for path, axis in sites
        ],
        "mlp": [_truth.mlp(f"{path}.mlp", s.hidden) for path, _ in sites],
    }


TRUTH = truth()
DYNAMIC = {"image": {0: "batch"}}
COLLIDING = {"grid": 2, "channels": 4, "levels": 4, "heads": 4, "head_dim": 4, "hidden": 16}
