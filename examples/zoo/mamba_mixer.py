"""MambaMixer: selective state spaces over tokens, then over channels, with averages of all earlier outputs.

Behrouz, Santacatterina, Zabih, "MambaMixer: Efficient Selective State Space Models with Dual Token and Channel
Selection", 2024. The channel mixer scans the channels forwards and backwards. Simplified: series, not images (no 2-D
cross scan); the scan in closed form over all pairs of steps, which needs no loop and no operator of its own, and does
not overflow: with L the sum of log decays (all <= 0), state[t] = sum over s <= t of exp(L[t] - L[s]) * input[s].
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
    tokens: int = 10
    features: int = 3
    width: int = 8
    states: int = 4
    depth: int = 2
    outputs: int = 5


class SelectiveScan(nn.Module):
    """x [B, T, C] -> [B, T, C]; step size, input and output weights of the N states depend on x."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.step = nn.Linear(width, width)
        self.write = nn.Linear(width, states)
        self.read = nn.Linear(width, states)
        self.log_decay = nn.Parameter(torch.log(1.0 + torch.arange(states)) + 0.3 * torch.randn(width, states))
        self.skip = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        step = F.softplus(self.step(x))  # [B, T, C]
        log_decay = -step.unsqueeze(-1) * self.log_decay.exp()  # [B, T, C, N]
        total = log_decay.cumsum(1)
        between = total.unsqueeze(2) - total.unsqueeze(1)  # [B, T, S, C, N]
        steps = torch.arange(x.shape[1], device=x.device)
        is_later = steps[None, :] > steps[:, None]
        decay = between.masked_fill(is_later[:, :, None, None], float("-inf")).exp()
        written = (step * x).unsqueeze(-1) * self.write(x).unsqueeze(2)  # [B, S, C, N]
        state = (decay * written.unsqueeze(1)).sum(2)  # [B, T, C, N]
        return (state * self.read(x).unsqueeze(2)).sum(-1) + self.skip * x


class GatedScan(nn.Module):
    """Causal depthwise convolution, scan and gate, as in Mamba; [B, T, C] -> [B, T, C]."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.convolution = nn.Conv1d(width, width, 3, groups=width)
        self.scan = SelectiveScan(width, states)
        self.down = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, dim=-1)
        value = self.convolution(F.pad(value.transpose(1, 2), (2, 0))).transpose(1, 2)
        return self.down(self.scan(F.silu(value)) * F.silu(gate))


class ChannelMixer(nn.Module):
    """Scans the channels, whose features are the tokens, in both directions; [B, T, C] -> [B, T, C]."""

    def __init__(self, tokens: int, states: int) -> None:
        super().__init__()
        self.forwards = GatedScan(tokens, states)
        self.backwards = GatedScan(tokens, states)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.transpose(1, 2)
        mixed = self.forwards(channels) + self.backwards(channels.flip(1)).flip(1)
        return mixed.transpose(1, 2)


class Block(nn.Module):
    """Inputs of both mixers are learned averages of all outputs before them."""

    def __init__(self, index: int, sizes: Sizes) -> None:
        super().__init__()
        n_earlier = 2 * index + 1
        self.token_average = nn.Parameter(torch.ones(n_earlier))
        self.channel_average = nn.Parameter(torch.ones(n_earlier + 1))
        self.token_norm, self.channel_norm = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.token_mixer = GatedScan(sizes.width, sizes.states)
        self.channel_mixer = ChannelMixer(sizes.tokens, sizes.states)

    def forward(self, outputs: list[Tensor]) -> list[Tensor]:
        outputs = [*outputs, self.token_mixer(self.token_norm(weighted(outputs, self.token_average)))]
        return [*outputs, self.channel_mixer(self.channel_norm(weighted(outputs, self.channel_average)))]


def weighted(outputs: list[Tensor], weights: Tensor) -> Tensor:
    """[B, T, C] of each -> their average [B, T, C]."""
    return (torch.stack(outputs, dim=-1) * weights).sum(-1)


class MambaMixer(nn.Module):
    """series [B, T, features] -> [B, outputs]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Linear(sizes.features, sizes.width)
        self.blocks = nn.ModuleList(Block(index, sizes) for index in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.outputs)

    def forward(self, series: Tensor) -> Tensor:
        outputs = [self.embedding(series)]
        for block in self.blocks:
            outputs = block(outputs)
        return self.head(self.norm(outputs[-1]).mean(1))


def build(**sizes: int) -> nn.Module:
    return MambaMixer(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    s = Sizes(**sizes)
    return {"series": seeded_normal(seed, batch, s.tokens, s.features)}


def truth(**sizes: int) -> _truth.Truth:
    Sizes(**sizes)
    # The decay is a lower triangle of steps by steps, like causal attention, but there is no softmax over it.
    return {"attention": [], "mlp": []}


TRUTH = truth()
DYNAMIC = {"series": {0: "batch"}}
COLLIDING = {"tokens": 4, "features": 4, "width": 4, "states": 4, "outputs": 4}
