"""TokenMixer-Large: tokens mixed and reverted, per-token sparse experts, residuals across layers.

"TokenMixer-Large: Scaling Up Large Ranking Models in Industrial Recommenders", 2026; the successor of RankMixer.
Mixed tokens go through a per-token network and are mixed back, so that the residual adds tokens of the same meaning;
then each token has gated experts of its own, routed by ReLU. The weights of all tokens are one tensor, contracted at
once. Simplified, from the paper's abstract: dense evaluation of all experts, one residual from the first layer.
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
    tokens: int = 4
    features: int = 5
    width: int = 16
    mixing_heads: int = 8
    hidden: int = 12
    experts: int = 3
    depth: int = 2
    tasks: int = 2


class PerTokenLinear(nn.Module):
    """One weight matrix and bias for each token: x [B, T, C] -> [B, T, C']."""

    def __init__(self, tokens: int, width: int, out_width: int) -> None:
        super().__init__()
        self.token_weight = nn.Parameter(torch.randn(tokens, width, out_width) / width**0.5)
        self.token_bias = nn.Parameter(0.3 * torch.randn(tokens, out_width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("btc,tcd->btd", x, self.token_weight) + self.token_bias


class MixAndRevert(nn.Module):
    """Head-wise mixing, a per-token network, the inverse of the mixing; [B, T, C] -> [B, T, C]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads, self.tokens = sizes.mixing_heads, sizes.tokens
        mixed_width = sizes.tokens * sizes.width // sizes.mixing_heads
        self.norm = nn.LayerNorm(mixed_width)
        self.up = PerTokenLinear(sizes.mixing_heads, mixed_width, sizes.hidden)
        self.down = PerTokenLinear(sizes.mixing_heads, sizes.hidden, mixed_width)

    def forward(self, x: Tensor) -> Tensor:
        mixed = x.unflatten(-1, (self.heads, -1)).transpose(1, 2).flatten(2)  # [B, heads, T * C / heads]
        mixed = mixed + self.down(F.gelu(self.up(self.norm(mixed))))
        return mixed.unflatten(-1, (self.tokens, -1)).transpose(1, 2).flatten(2)


class PerTokenExperts(nn.Module):
    """sum over experts of relu(router) * (silu(gate) * up) down, all of them per token; [B, T, C] -> [B, T, C]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.router = PerTokenLinear(sizes.tokens, sizes.width, sizes.experts)
        self.gate_up = nn.Parameter(
            torch.randn(sizes.tokens, sizes.experts, sizes.width, 2 * sizes.hidden) / sizes.width**0.5
        )
        self.down = nn.Parameter(
            torch.randn(sizes.tokens, sizes.experts, sizes.hidden, sizes.width) / sizes.hidden**0.5
        )

    def forward(self, x: Tensor) -> Tensor:
        share = F.relu(self.router(x))  # [B, T, E]
        gate, up = torch.einsum("btc,tecr->bter", x, self.gate_up).chunk(2, dim=-1)
        return torch.einsum("bter,terc->btc", F.silu(gate) * up * share.unsqueeze(-1), self.down)


class Block(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.mixing_norm = nn.RMSNorm(sizes.width)
        self.mixing = MixAndRevert(sizes)
        self.experts_norm = nn.RMSNorm(sizes.width)
        self.experts = PerTokenExperts(sizes)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixing(self.mixing_norm(x))
        return x + self.experts(self.experts_norm(x))


class TokenMixerLarge(nn.Module):
    """features [B, T, features] -> a score for each task [B, tasks]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.tokenizer = PerTokenLinear(sizes.tokens, sizes.features, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.norm = nn.RMSNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.tasks)

    def forward(self, features: Tensor) -> Tensor:
        x = first = self.blocks[0](self.tokenizer(features))
        for block in self.blocks[1:]:
            x = block(x)
        return self.head(self.norm(x + first).mean(1))


def build(**sizes: int) -> nn.Module:
    return TokenMixerLarge(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    s = Sizes(**sizes)
    return {"features": seeded_normal(seed, batch, s.tokens, s.features)}


def truth(**sizes: int) -> _truth.Truth:
    s = Sizes(**sizes)
    # Both have private weights per token: dropping or merging tokens is not defined for them.
    mixing = [_truth.mlp(f"blocks.{i}.mixing", s.hidden) for i in range(s.depth)]
    experts = [_truth.mlp(f"blocks.{i}.experts", s.hidden, activation="silu", gated=True) for i in range(s.depth)]
    return {"attention": [], "mlp": [*mixing, *experts]}


TRUTH = truth()
DYNAMIC = {"features": {0: "batch"}}
COLLIDING = {
    "tokens": 4,
    "features": 4,
    "width": 4,
    "mixing_heads": 4,
    "hidden": 4,
    "experts": 4,
    "tasks": 4,
}
