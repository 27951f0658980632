"""The standard pre-norm transformer layer, for the architectures that take it unchanged."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[..., T, C] -> [..., H, T, D]."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """[..., H, T, D] -> [..., T, C]."""
    return x.transpose(-3, -2).flatten(-2)


class Attention(nn.Module):
    """Multi-head attention of x [B, T, C] over context [B, S, C'] (x itself if None) -> [B, T, C].

    Other leading dims must be folded into B: PyTorch's exporter translates the fused attention of four dims only.
    """

    def __init__(self, width: int, heads: int, context_width: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(context_width or width, width)
        self.value = nn.Linear(context_width or width, width)
        self.output = nn.Linear(width, width)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        context = x if context is None else context
        query = split_heads(self.query(x), self.heads)
        key, value = split_heads(self.key(context), self.heads), split_heads(self.value(context), self.heads)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal)
        return self.output(merge_heads(mixed))


class FeedForward(nn.Module):
    """Linear, GELU, Linear on the last dim."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class TransformerLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); [B, T, C] -> [B, T, C]."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = FeedForward(width, hidden)

    def forward(self, x: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        x = x + self.attention(self.attention_norm(x), mask=mask, is_causal=is_causal)
        return x + self.mlp(self.mlp_norm(x))


def images_to_patches(x: Tensor, patch: int) -> Tensor:
    """[B, C, h*p, w*p] -> [B, h*w, C*p*p]."""
    blocks = x.unflatten(2, (-1, patch)).unflatten(4, (-1, patch))
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def patches_to_images(x: Tensor, grid: int, patch: int) -> Tensor:
    """[B, h*w, C*p*p] -> [B, C, h*p, w*p] for a square grid."""
    blocks = x.unflatten(1, (grid, grid)).unflatten(3, (-1, patch, patch))
    return blocks.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def seeded_normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded_ids(seed: int, high: int, *shape: int, low: int = 0) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))
