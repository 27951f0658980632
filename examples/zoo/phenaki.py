"""C-ViViT of Phenaki: a video tokenizer whose layers attend over space, then causally over time.

Villegas et al., "Phenaki: Variable Length Video Generation from Open Domain Textual Descriptions", ICLR 2023.
The first frame and the tubes of two frames after it have projections of their own, so that an image is a video of one
frame. Frames are folded into the batch for spatial attention, with a bias that an MLP makes of continuous relative
positions; positions are folded into the batch for temporal attention, causal with linear biases (ALiBi). Simplified:
few layers, cosine quantization without training losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import _truth
from zoo._layers import FeedForward, images_to_patches, merge_heads, patches_to_images, seeded_normal, split_heads

TUBE = 2
"""Frames per tube."""


@dataclass(frozen=True)
class Sizes:
    tubes: int = 2
    grid: int = 3
    patch: int = 4
    codes: int = 16
    code_width: int = 6
    heads: int = 4
    head_dim: int = 8
    hidden: int = 48
    depth: int = 1
    """Spatial and temporal layers each, in the encoder and in the decoder."""

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def n_frames(self) -> int:
        return 1 + TUBE * self.tubes


class BiasedAttention(nn.Module):
    """x [N, T, C], bias [H, T, T] added to the scores -> [N, T, C]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        query = split_heads(self.query(x), self.heads)
        key, value = (split_heads(part, self.heads) for part in self.key_value(x).chunk(2, dim=-1))
        scores = torch.einsum("nhqd,nhkd->nhqk", query * query.shape[-1] ** -0.5, key) + bias
        return self.output(merge_heads(torch.einsum("nhqk,nhkd->nhqd", scores.softmax(-1), value)))


class Layer(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.attention = BiasedAttention(sizes.width, sizes.heads)
        self.mlp = FeedForward(sizes.width, sizes.hidden)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), bias)
        return x + self.mlp(self.mlp_norm(x))


def relative_offsets(grid: int) -> Tensor:
    """Log-spaced offsets between all positions of a grid: [P, P, 2]."""
    line = torch.arange(grid, dtype=torch.float32)
    positions = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).flatten(0, 1)
    offsets = positions[:, None] - positions[None]
    return offsets.sign() * (offsets.abs() + 1).log()


def causal_linear_bias(heads: int, frames: int) -> Tensor:
    """ALiBi: minus slope times distance for the past, -inf for the future: [H, T, T]."""
    slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)
    distance = torch.arange(frames)[:, None] - torch.arange(frames)[None]
    bias = -slopes[:, None, None] * distance
    return bias.masked_fill(distance < 0, float("-inf"))


class Factorized(nn.Module):
    """Spatial and temporal layers over tokens [B, frames, P, C], in the order asked for."""

    def __init__(self, sizes: Sizes, spatial_first: bool) -> None:
        super().__init__()
        self.heads, self.spatial_first = sizes.heads, spatial_first
        self.spatial = nn.ModuleList(Layer(sizes) for _ in range(sizes.depth))
        self.temporal = nn.ModuleList(Layer(sizes) for _ in range(sizes.depth))
        self.position_mlp = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.1), nn.Linear(16, sizes.heads))
        self.register_buffer("offsets", relative_offsets(sizes.grid))
        self.register_buffer("time_bias", causal_linear_bias(sizes.heads, 1 + sizes.tubes))

    def forward(self, x: Tensor) -> Tensor:
        if self.spatial_first:
            return self._over_time(self._over_space(x))
        return self._over_space(self._over_time(x))

    def _over_space(self, x: Tensor) -> Tensor:
        bias = self.position_mlp(self.offsets).permute(2, 0, 1)
        folded = x.flatten(0, 1)  # [B * frames, P, C]
        for layer in self.spatial:
            folded = layer(folded, bias)
        return folded.unflatten(0, (-1, x.shape[1]))

    def _over_time(self, x: Tensor) -> Tensor:
        folded = x.transpose(1, 2).flatten(0, 1)  # [B * P, frames, C]
        for layer in self.temporal:
            folded = layer(folded, self.time_bias)
        return folded.unflatten(0, (-1, x.shape[2])).transpose(1, 2)


class CViViT(nn.Module):
    """video [B, 3, 1 + 2*tubes, h*p, w*p] -> reconstruction (same shape), code indices [B, 1 + tubes, P]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        values = 3 * sizes.patch**2
        self.first_embedding, self.tube_embedding = (
            nn.Linear(values, sizes.width),
            nn.Linear(TUBE * values, sizes.width),
        )
        self.encoder, self.decoder = Factorized(sizes, spatial_first=True), Factorized(sizes, spatial_first=False)
        self.to_code, self.from_code = (
            nn.Linear(sizes.width, sizes.code_width),
            nn.Linear(sizes.code_width, sizes.width),
        )
        self.codebook = nn.Parameter(torch.randn(sizes.codes, sizes.code_width))
        self.norm = nn.LayerNorm(sizes.width)
        self.first_head, self.tube_head = nn.Linear(sizes.width, values), nn.Linear(sizes.width, TUBE * values)

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        codes, index = self.quantize(self.to_code(self.encoder(self.embed(video))))
        return self.to_video(self.norm(self.decoder(self.from_code(codes)))), index

    def embed(self, video: Tensor) -> Tensor:
        """[B, 3, frames, ...] -> [B, 1 + tubes, P, C]."""
        patch = self.sizes.patch
        first = self.first_embedding(images_to_patches(video[:, :, 0], patch)).unsqueeze(1)
        # A tube is an image of 2 * 3 channels.
        tubes = video[:, :, 1:].unflatten(2, (-1, TUBE)).permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
        rest = images_to_patches(tubes.flatten(0, 1), patch)
        return torch.cat([first, self.tube_embedding(rest).unflatten(0, (-1, self.sizes.tubes))], dim=1)

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        codebook = F.normalize(self.codebook, dim=-1)
        index = (F.normalize(x, dim=-1) @ codebook.t()).argmax(-1)
        return F.embedding(index, codebook), index

    def to_video(self, x: Tensor) -> Tensor:
        grid, patch = self.sizes.grid, self.sizes.patch
        first = patches_to_images(self.first_head(x[:, 0]), grid, patch).unsqueeze(2)
        rest = patches_to_images(self.tube_head(x[:, 1:]).flatten(0, 1), grid, patch)
        rest = rest.unflatten(1, (TUBE, 3)).unflatten(0, (-1, self.sizes.tubes))  # [B, tubes, 2, 3, ...]
        return torch.cat([first, rest.flatten(1, 2).transpose(1, 2)], dim=2)


def build(**sizes: int) -> nn.Module:
    return CViViT(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    s = Sizes(**sizes)
    side = s.grid * s.patch
    return {"video": seeded_normal(seed, batch, 3, s.n_frames, side, side)}


def truth(**sizes: int) -> _truth.Truth:
    s = Sizes(**sizes)
    sites, mlps = [], []
    for half in ("encoder", "decoder"):
        for axis, mask in (("spatial", "bias"), ("temporal", "bias+causal")):
            for i in range(s.depth):
                path = f"{half}.{axis}.{i}"
                what = {"mask": mask, "axis": "frame" if axis == "temporal" else "patch"}
                sites.append(_truth.attention(f"{path}.attention", s.heads, s.head_dim, **what))
                mlps.append(_truth.mlp(f"{path}.mlp", s.hidden))
    return {"attention": sites, "mlp": mlps}


TRUTH = truth()
DYNAMIC = {"video": {0: "batch"}}
COLLIDING = {
    "tubes": 3,
    "grid": 2,
    "patch": 4,
    "codes": 4,
    "code_width": 4,
    "heads": 4,
    "head_dim": 4,
    "hidden": 16,
}
