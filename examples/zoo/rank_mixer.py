"""RankMixer: tokens mixed without parameters, then a feed-forward network of its own for each token.

Zhu et al., "RankMixer: Scaling Up Ranking Models in Industrial Recommenders", 2025.
Features become T tokens; each is cut into T heads, and token t of the next layer is head t of all tokens. Written as
the paper does it, a list of small networks and a loop over tokens. Simplified: no sparse experts (`token_mixer_large`
has them), all features are ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo import _truth
from zoo._layers import FeedForward, seeded_ids


@dataclass(frozen=True)
class Sizes:
    fields: int = 8
    vocabulary: int = 30
    field_width: int = 6
    tokens: int = 4
    width: int = 16
    hidden: int = 24
    depth: int = 2
    tasks: int = 3


def mix_tokens(x: Tensor, heads: int) -> Tensor:
    """Token h of the result is head h of all tokens, in order; [B, T, C] -> [B, heads, T * C / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(2)


class PerToken(nn.Module):
    """One module of `parts` for each token; [B, T, C] -> [B, T, C']."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([part(x[:, token]) for token, part in enumerate(self.parts)], dim=1)


class Block(nn.Module):
    """Post-norm; [B, T, C] -> [B, T, C]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.mixing_norm = nn.LayerNorm(sizes.width)
        self.mlp = PerToken([FeedForward(sizes.width, sizes.hidden) for _ in range(sizes.tokens)])
        self.mlp_norm = nn.LayerNorm(sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixing_norm(x + mix_tokens(x, x.shape[1]))
        return self.mlp_norm(x + self.mlp(x))


class RankMixer(nn.Module):
    """feature_ids [B, fields] -> a score for each task [B, tasks]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        if sizes.fields % sizes.tokens or sizes.width % sizes.tokens:
            raise ValueError(
                f"fields ({sizes.fields}) and width ({sizes.width}) must divide by tokens ({sizes.tokens})"
            )
        self.tokens = sizes.tokens
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.field_width)
        share = sizes.fields // sizes.tokens * sizes.field_width
        self.tokenizer = PerToken([nn.Linear(share, sizes.width) for _ in range(sizes.tokens)])
        self.blocks = nn.Sequential(*(Block(sizes) for _ in range(sizes.depth)))
        self.head = nn.Linear(sizes.width, sizes.tasks)

    def forward(self, feature_ids: Tensor) -> Tensor:
        features = self.embedding(feature_ids).flatten(1).unflatten(1, (self.tokens, -1))
        return self.head(self.blocks(self.tokenizer(features)).mean(1))


def build(**sizes: int) -> nn.Module:
    return RankMixer(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    s = Sizes(**sizes)
    return {"feature_ids": seeded_ids(seed, s.vocabulary, batch, s.fields)}


def truth(**sizes: int) -> _truth.Truth:
    s = Sizes(**sizes)
    parts = [f"blocks.{i}.mlp.parts.{token}" for i in range(s.depth) for token in range(s.tokens)]
    return {"attention": [], "mlp": [_truth.mlp(path, s.hidden) for path in parts]}


TRUTH = truth()
DYNAMIC = {"feature_ids": {0: "batch"}}
COLLIDING = {
    "fields": 4,
    "vocabulary": 4,
    "field_width": 4,
    "tokens": 4,
    "width": 4,
    "hidden": 4,
    "tasks": 4,
}
