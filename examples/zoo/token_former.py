"""TokenFormer: every linear layer is an attention of its input over parameter tokens.

Wang et al., "TokenFormer: Rethinking Transformer Scaling with Tokenized Model Parameters", ICLR 2025.
Pattention(x) = gelu(scores / |scores| * sqrt(n)) V with scores = x K^T and n parameter tokens K, V: no softmax, and the
norm runs over the parameters. Positions are rotary, the halves of a head turned against each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import _truth
from zoo._layers import merge_heads, seeded_ids, split_heads


@dataclass(frozen=True)
class Sizes:
    tokens: int = 6
    vocabulary: int = 20
    heads: int = 4
    head_dim: int = 8
    attention_parameters: int = 20
    mlp_parameters: int = 40
    depth: int = 2

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


class Pattention(nn.Module):
    """x [..., C] over n parameter tokens -> [..., C_out]."""

    def __init__(self, width: int, n_tokens: int, out_width: int) -> None:
        super().__init__()
        self.key_tokens = nn.Parameter(torch.randn(n_tokens, width))
        self.value_tokens = nn.Parameter(torch.randn(n_tokens, out_width) / n_tokens**0.5)

    def forward(self, x: Tensor) -> Tensor:
        scores = x @ self.key_tokens.t()
        scores = F.normalize(scores, dim=-1) * scores.shape[-1] ** 0.5
        return F.gelu(scores) @ self.value_tokens


def rotate_half(x: Tensor) -> Tensor:
    """[..., (a, b)] -> [..., (-b, a)]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


class CausalAttention(nn.Module):
    """x [B, T, C] -> [B, T, C]; its four projections are Pattentions."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.query, self.key, self.value, self.output = (
            Pattention(sizes.width, sizes.attention_parameters, sizes.width) for _ in range(4)
        )

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        query, key, value = (split_heads(part(x), self.heads) for part in (self.query, self.key, self.value))
        query, key = (part * cosine + rotate_half(part) * sine for part in (query, key))
        return self.output(merge_heads(F.scaled_dot_product_attention(query, key, value, is_causal=True)))


class Block(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(sizes.width)
        self.attention = CausalAttention(sizes)
        self.mlp_norm = nn.LayerNorm(sizes.width)
        self.mlp = Pattention(sizes.width, sizes.mlp_parameters, sizes.width)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cosine, sine)
        return x + self.mlp(self.mlp_norm(x))


class TokenFormer(nn.Module):
    """input_ids [B, T] -> next-token scores [B, T, vocabulary]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.width)
        self.register_buffer("frequency", 100.0 ** (-torch.arange(sizes.head_dim // 2) / (sizes.head_dim // 2)))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        angles = torch.arange(x.shape[1], device=x.device).unsqueeze(-1) * self.frequency  # [T, D / 2]
        angles = torch.cat([angles, angles], dim=-1)
        for block in self.blocks:
            x = block(x, angles.cos(), angles.sin())
        return self.head(self.norm(x))


def build(**sizes: int) -> nn.Module:
    return TokenFormer(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    s = Sizes(**sizes)
    return {"input_ids": seeded_ids(seed, s.vocabulary, batch, s.tokens)}


def truth(**sizes: int) -> _truth.Truth:
    s = Sizes(**sizes)
    # A Pattention is no site: MatMul, norm, GELU, MatMul over parameters looks like attention, and like an MLP whose
    # hidden units depend on each other through the norm. What is an attention site are the tokens among themselves.
    paths = [f"blocks.{i}.attention" for i in range(s.depth)]
    sites = [_truth.attention(path, s.heads, s.head_dim, mask="causal", rotary=True) for path in paths]
    return {"attention": sites, "mlp": []}


TRUTH = truth()
DYNAMIC = {"input_ids": {0: "batch", 1: "tokens"}}
RESIZED = {"tokens": 9}
COLLIDING = {
    "tokens": 4,
    "vocabulary": 4,
    "heads": 4,
    "head_dim": 4,
    "attention_parameters": 16,
    "mlp_parameters": 16,
}
