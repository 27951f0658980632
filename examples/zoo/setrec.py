"""SETRec: items named by an order-free set of identifiers, all generated at once.

Lin et al., "Order-agnostic Identifier for Large Language Model-based Generative Recommendation", SIGIR 2025.
Each item of the history is N tokens, one per identifier. They share the position of their item and do not see each
other; later items see them all. N query tokens at the end stand for the next item, and each is scored against the
identifiers of its own kind of every item. Simplified: a small pre-norm decoder with learned positions for the LLM, and
the identifiers are tables.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo import _truth
from zoo._layers import TransformerLayer, seeded_ids


@dataclass(frozen=True)
class Sizes:
    items: int = 5
    """Length of the history."""
    max_items: int = 8
    catalogue: int = 11
    identifiers: int = 3
    heads: int = 4
    head_dim: int = 8
    hidden: int = 48
    depth: int = 2

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


class SetRec(nn.Module):
    """history [B, items] of item ids -> a score for each item of the catalogue [B, catalogue]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        n = sizes.identifiers
        self.identifiers = n
        self.item_table = nn.Parameter(torch.randn(n, sizes.catalogue, sizes.width))
        self.queries = nn.Parameter(torch.randn(1, n, sizes.width))
        self.position = nn.Embedding(sizes.max_items + 1, sizes.width)
        self.blocks = nn.ModuleList(
            TransformerLayer(sizes.width, sizes.heads, sizes.hidden) for _ in range(sizes.depth)
        )
        self.norm = nn.LayerNorm(sizes.width)

    def forward(self, history: Tensor) -> Tensor:
        batch = history.shape[0]
        tokens = self.item_table[:, history].permute(1, 2, 0, 3)  # [B, items, N, C]
        x = torch.cat([tokens, self.queries.expand(batch, -1, -1).unsqueeze(1)], dim=1)
        item = torch.arange(x.shape[1], device=x.device)
        x = (x + self.position(item).unsqueeze(1)).flatten(1, 2)
        token = torch.arange(x.shape[1], device=x.device)
        item = token // self.identifiers
        mask = (item[None] < item[:, None]) | (token[None] == token[:, None])
        for block in self.blocks:
            x = block(x, mask)
        queries = self.norm(x[:, -self.identifiers :]).transpose(0, 1)  # [N, B, C]
        return torch.bmm(queries, self.item_table.transpose(1, 2)).sum(0)


def build(**sizes: int) -> nn.Module:
    return SetRec(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    s = Sizes(**sizes)
    return {"history": seeded_ids(seed, s.catalogue, batch, s.items)}


def truth(**sizes: int) -> _truth.Truth:
    s = Sizes(**sizes)
    paths = [f"blocks.{i}" for i in range(s.depth)]
    # With one identifier an item, a token sees all earlier ones and itself.
    mask = "sparse" if s.identifiers > 1 else "causal"
    return {
        "attention": [_truth.attention(f"{path}.attention", s.heads, s.head_dim, mask=mask) for path in paths],
        "mlp": [_truth.mlp(f"{path}.mlp", s.hidden) for path in paths],
    }


TRUTH = truth()
DYNAMIC = {"history": {0: "batch", 1: "items"}}
RESIZED = {"items": 7}
COLLIDING = {
    "items": 3,
    "max_items": 4,
    "catalogue": 4,
    "identifiers": 1,
    "heads": 4,
    "head_dim": 4,
    "hidden": 16,
}
