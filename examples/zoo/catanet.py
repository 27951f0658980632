"""CATANet: tokens sorted by content, attention inside groups of alike tokens; super-resolution.

Liu, Liu, Tang, Wu, "CATANet: Efficient Content-Aware Token Aggregation for Lightweight Image Super-Resolution",
CVPR 2025. Each token finds its nearest centre; tokens sorted by centre are cut into groups that attend to themselves
and the next group; all tokens also attend to the centres. A second block attends inside overlapping crops.
Simplified: the centres are fixed buffers (the paper updates them in training); crops by unfold and fold. The sort keys
are made unique (centre * T + position), so that a sort need not be stable, which ONNX cannot ask for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import _truth
from zoo._layers import Attention, FeedForward, merge_heads, seeded_normal, split_heads


@dataclass(frozen=True)
class Sizes:
    grid: int = 8
    group: int = 16
    centres: int = 6
    crop: int = 4
    overlap: int = 2
    heads: int = 4
    head_dim: int = 8
    hidden: int = 48
    depth: int = 2
    upscale: int = 2

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


class GroupAttention(nn.Module):
    """Sorted tokens [B, T, C], centres [M, C] -> [B, T, C]: own and next group, plus the centres."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads, self.group = sizes.heads, sizes.group
        width = sizes.width
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.centre_key, self.centre_value = nn.Linear(width, width), nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, centres: Tensor) -> Tensor:
        query = self.query(x)
        key, value = self._with_next_group(self.key(x)), self._with_next_group(self.value(x))
        grouped = split_heads(query.reshape(-1, self.group, query.shape[-1]), self.heads)  # [B * groups, H, group, D]
        own = merge_heads(F.scaled_dot_product_attention(grouped, key, value)).reshape(query.shape)
        centre_key = split_heads(self.centre_key(centres), self.heads).unsqueeze(0)
        centre_value = split_heads(self.centre_value(centres), self.heads).unsqueeze(0)
        scores = split_heads(query, self.heads) @ centre_key.transpose(-2, -1) * grouped.shape[-1] ** -0.5
        return self.output(own + merge_heads(scores.softmax(-1) @ centre_value))

    def _with_next_group(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B * groups, H, 2*group, D]; the last group sees itself once more, in reverse."""
        padded = torch.cat([x, x[:, -self.group :].flip(1)], dim=1)
        first, second = padded[:, : -self.group], padded[:, self.group :]
        pairs = torch.cat([first.unflatten(1, (-1, self.group)), second.unflatten(1, (-1, self.group))], dim=2)
        return split_heads(pairs.flatten(0, 1), self.heads)


class TokenAggregation(nn.Module):
    """Sorts by nearest centre, attends in groups, sorts back; [B, T, C] -> [B, T, C]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention = GroupAttention(sizes)
        self.register_buffer("centres", torch.randn(sizes.centres, sizes.width))

    def forward(self, x: Tensor) -> Tensor:
        n_tokens = x.shape[1]
        similarity = F.normalize(x, dim=-1) @ F.normalize(self.centres, dim=-1).t()
        order_key = similarity.argmax(-1) * n_tokens + torch.arange(n_tokens, device=x.device)
        order = order_key.argsort(dim=-1).unsqueeze(-1).expand_as(x)
        mixed = self.attention(x.gather(1, order), self.centres)
        return torch.zeros_like(x).scatter(1, order, mixed)


class CropAttention(nn.Module):
    """Attention inside overlapping crops, overlaps averaged; [B, T, C] -> [B, T, C]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.attention = Attention(sizes.width, sizes.heads)
        self.stride = sizes.crop - sizes.overlap
        ones = torch.ones(1, 1, sizes.grid, sizes.grid)
        cover = F.fold(F.unfold(ones, sizes.crop, stride=self.stride), sizes.grid, sizes.crop, stride=self.stride)
        self.register_buffer("cover", cover)

    def forward(self, x: Tensor) -> Tensor:
        s = self.sizes
        grid = x.transpose(1, 2).unflatten(2, (s.grid, s.grid))
        crops = F.unfold(grid, s.crop, stride=self.stride).unflatten(1, (s.width, -1))  # [B, C, crop^2, crops]
        n_crops = crops.shape[-1]
        mixed = self.attention(crops.permute(0, 3, 2, 1).flatten(0, 1)).unflatten(0, (-1, n_crops))
        grid = F.fold(mixed.permute(0, 3, 2, 1).flatten(1, 2), s.grid, s.crop, stride=self.stride) / self.cover
        return grid.flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Global aggregation, then local attention, each followed by an MLP; [B, T, C] -> [B, T, C]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(sizes.width) for _ in range(4))
        self.aggregation, self.crops = TokenAggregation(sizes), CropAttention(sizes)
        self.aggregation_mlp = FeedForward(sizes.width, sizes.hidden)
        self.crops_mlp = FeedForward(sizes.width, sizes.hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.aggregation(self.norms[0](x))
        x = x + self.aggregation_mlp(self.norms[1](x))
        x = x + self.crops(self.norms[2](x))
        return x + self.crops_mlp(self.norms[3](x))


class CataNet(nn.Module):
    """image [B, 3, h, w] -> [B, 3, upscale*h, upscale*w]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.stem = nn.Conv2d(3, sizes.width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.head = nn.Conv2d(sizes.width, 3 * sizes.upscale**2, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        features = self.stem(image)
        x = features.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        features = features + x.transpose(1, 2).unflatten(2, (self.sizes.grid, self.sizes.grid))
        return F.pixel_shuffle(self.head(features), self.sizes.upscale)


def build(**sizes: int) -> nn.Module:
    return CataNet(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    grid = Sizes(**sizes).grid
    return {"image": seeded_normal(seed, batch, 3, grid, grid)}


def truth(**sizes: int) -> _truth.Truth:
    s = Sizes(**sizes)
    sites, mlps = [], []
    for i in range(s.depth):
        # One module, two sites: queries of a group over two groups, and the same queries over the centres.
        path = f"blocks.{i}.aggregation.attention"
        sites.append(_truth.attention(path, s.heads, s.head_dim, kind="cross", axis="group"))
        sites.append(_truth.attention(path, s.heads, s.head_dim, kind="cross"))
        sites.append(_truth.attention(f"blocks.{i}.crops.attention", s.heads, s.head_dim, axis="window"))
        mlps += [_truth.mlp(f"blocks.{i}.{name}_mlp", s.hidden) for name in ("aggregation", "crops")]
    return {"attention": sites, "mlp": mlps}


TRUTH = truth()
DYNAMIC = {"image": {0: "batch"}}
COLLIDING = {"grid": 4, "group": 4, "centres": 4, "crop": 2, "overlap": 1, "heads": 4, "head_dim": 4, "hidden": 16}
