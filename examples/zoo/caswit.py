"""CASWiT: a high-resolution window transformer that cross-attends to a low-resolution context, for segmentation.

"Context-Aware Semantic Segmentation via Stage-Wise Attention" (CASWiT: Context-Aware Stage-Wise Transformer).
Two Swin branches (Liu et al., ICCV 2021); after a stage the detail tokens look at all context tokens through a gate.
Simplified, from the paper's abstract: one stage of a plain and a shifted block per branch, tanh gate, small decoder.
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
    windows: int = 2
    """Windows along each side of a branch."""
    window: int = 4
    patch: int = 2
    heads: int = 4
    head_dim: int = 8
    hidden: int = 48
    classes: int = 5

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def grid(self) -> int:
        return self.windows * self.window


def relative_index(window: int) -> Tensor:
    """Row of the table of relative positions for each pair of pixels of a window: [window^2, window^2]."""
    line = torch.arange(window)
    pixels = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).flatten(0, 1)
    offsets = pixels[:, None] - pixels[None] + window - 1
    return offsets[..., 0] * (2 * window - 1) + offsets[..., 1]


def shift_mask(grid: int, window: int, shift: int) -> Tensor:
    """-100 between pixels that only the roll made neighbours, as in Swin: [windows^2, 1, window^2, window^2]."""
    line = torch.zeros(grid)
    line[-window:-shift], line[-shift:] = 1, 2
    regions = windows_of((3 * line[:, None] + line[None]).reshape(1, grid, grid, 1), window).squeeze(-1)
    return torch.where(regions[:, None] == regions[:, :, None], 0.0, -100.0).unsqueeze(1)


def windows_of(x: Tensor, window: int) -> Tensor:
    """[B, h, w, C] -> [B * windows, window^2, C]."""
    return x.unflatten(1, (-1, window)).unflatten(3, (-1, window)).transpose(2, 3).flatten(3, 4).flatten(0, 2)


class WindowAttention(nn.Module):
    """Attention inside windows of a grid that is rolled by `shift`; [B, h, w, C] -> [B, h, w, C]."""

    def __init__(self, sizes: Sizes, shift: int) -> None:
        super().__init__()
        self.sizes, self.shift = sizes, shift
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width)
        self.output = nn.Linear(sizes.width, sizes.width)
        self.relative_positions = nn.Parameter(torch.randn((2 * sizes.window - 1) ** 2, sizes.heads))
        self.register_buffer("relative_index", relative_index(sizes.window))
        if shift:
            self.register_buffer("shift_mask", shift_mask(sizes.grid, sizes.window, shift))

    def forward(self, x: Tensor) -> Tensor:
        s = self.sizes
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        query, key, value = (split_heads(part, s.heads) for part in self.qkv(windows_of(x, s.window)).chunk(3, -1))
        scores = query @ key.transpose(-2, -1) * s.head_dim**-0.5  # [B * windows, H, window^2, window^2]
        scores = scores + self.relative_positions[self.relative_index].permute(2, 0, 1)
        if self.shift:
            scores = (scores.unflatten(0, (-1, s.windows**2)) + self.shift_mask).flatten(0, 1)
        x = self.output(merge_heads(scores.softmax(-1) @ value))
        x = x.unflatten(1, (s.window, s.window)).unflatten(0, (-1, s.windows, s.windows))
        x = x.transpose(2, 3).flatten(1, 2).flatten(2, 3)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x


class SwinBlock(nn.Module):
    """[B, h, w, C] -> [B, h, w, C]."""

    def __init__(self, sizes: Sizes, shift: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.attention = WindowAttention(sizes, shift)
        self.mlp = FeedForward(sizes.width, sizes.hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Branch(nn.Module):
    """image [B, 3, side, side] -> tokens [B, h, w, C] after a plain and a shifted block."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, sizes.width, sizes.patch, stride=sizes.patch)
        self.norm = nn.LayerNorm(sizes.width)
        self.blocks = nn.Sequential(SwinBlock(sizes, 0), SwinBlock(sizes, sizes.window // 2))

    def forward(self, image: Tensor) -> Tensor:
        return self.blocks(self.norm(self.patch_embedding(image).permute(0, 2, 3, 1)))


class Caswit(nn.Module):
    """detail [B, 3, side, side], context (a wider view, downsampled, same shape) -> [B, classes, side, side]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.detail_branch, self.context_branch = Branch(sizes), Branch(sizes)
        self.detail_norm, self.context_norm = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.cross_attention = Attention(sizes.width, sizes.heads)
        self.gate = nn.Parameter(torch.ones(1))
        self.refine = nn.Sequential(
            nn.Conv2d(sizes.width, sizes.width, 3, padding=1), nn.BatchNorm2d(sizes.width), nn.ReLU()
        )
        self.head = nn.Conv2d(sizes.width, sizes.classes, 1)
        self.patch = sizes.patch

    def forward(self, detail: Tensor, context: Tensor) -> Tensor:
        x = self.detail_branch(detail)
        context_tokens = self.context_norm(self.context_branch(context)).flatten(1, 2)
        seen = self.cross_attention(self.detail_norm(x).flatten(1, 2), context_tokens)
        x = x + torch.tanh(self.gate) * seen.unflatten(1, x.shape[1:3])
        x = self.head(self.refine(x.permute(0, 3, 1, 2)))
        return F.interpolate(x, scale_factor=self.patch, mode="bilinear", align_corners=False)


def build(**sizes: int) -> nn.Module:
    return Caswit(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    s = Sizes(**sizes)
    shape = (batch, 3, s.grid * s.patch, s.grid * s.patch)
    return {"detail": seeded_normal(seed, *shape), "context": seeded_normal(seed + 1, *shape)}


def truth(**sizes: int) -> _truth.Truth:
    s = Sizes(**sizes)
    blocks = [(f"{branch}_branch.blocks.{i}", i) for branch in ("detail", "context") for i in range(2)]
    windows = [
        _truth.attention(
            f"{path}.attention", s.heads, s.head_dim, mask="bias+shift" if shifted else "bias", axis="window"
        )
        for path, shifted in blocks
    ]
    return {
        "attention": [*windows, _truth.attention("cross_attention", s.heads, s.head_dim, kind="cross")],
        "mlp": [_truth.mlp(f"{path}.mlp", s.hidden) for path, _ in blocks],
    }


TRUTH = truth()
DYNAMIC = {"detail": {0: "batch"}, "context": {0: "batch"}}
COLLIDING = {"windows": 2, "window": 2, "heads": 4, "head_dim": 4, "hidden": 16, "classes": 4}
