"""TiTok: an image as a short sequence of latent tokens, vector-quantized.

Yu et al., "An Image is Worth 32 Tokens for Reconstruction and Generation", NeurIPS 2024.
The encoder sees [class, patches, latents] and only the latents, its suffix, are kept, quantized by cosine similarity,
and decoded beside mask tokens that become the patches. Transformer layers hold tokens first, [T, B, C], as the paper's
code does, with batch and heads folded into one dim for the attention. Simplified: few layers, a linear pixel head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import _truth
from zoo._layers import FeedForward, patches_to_images, seeded_normal


@dataclass(frozen=True)
class Sizes:
    grid: int = 3
    patch: int = 4
    latents: int = 5
    codes: int = 16
    code_width: int = 6
    heads: int = 4
    head_dim: int = 8
    hidden: int = 48
    depth: int = 1
    """Of the encoder and of the decoder."""

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def n_patches(self) -> int:
        return self.grid**2


class TokensFirstAttention(nn.Module):
    """x [T, B, C] -> [T, B, C]; scores [B * H, T, T]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        tokens, batch, width = x.shape
        folded = (tokens, batch * self.heads, self.head_dim)
        query, key, value = (part.reshape(folded).transpose(0, 1) for part in self.qkv(x).chunk(3, dim=-1))
        weights = torch.bmm(query * self.head_dim**-0.5, key.transpose(1, 2)).softmax(-1)
        return self.output(torch.bmm(weights, value).transpose(0, 1).reshape(tokens, batch, width))


class Block(nn.Module):
    """Pre-norm; [T, B, C] -> [T, B, C]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.attention = TokensFirstAttention(sizes.width, sizes.heads)
        self.mlp = FeedForward(sizes.width, sizes.hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class CosineQuantizer(nn.Module):
    """Nearest code by angle; x [B, Q, W] -> unit codes [B, Q, W], their indices [B, Q]."""

    def __init__(self, codes: int, code_width: int) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(codes, code_width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, codebook = F.normalize(x, dim=-1), F.normalize(self.codebook, dim=-1)
        squares = x.square().sum(-1, keepdim=True) + codebook.square().sum(-1)
        index = (squares - 2 * x @ codebook.t()).argmin(-1)
        return F.embedding(index, codebook), index


class LatentEncoder(nn.Module):
    """image [B, 3, h*p, w*p] -> latents [B, Q, code_width]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        self.patch_embedding = nn.Conv2d(3, width, sizes.patch, stride=sizes.patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1 + sizes.n_patches, width))
        self.latents = nn.Parameter(torch.randn(1, sizes.latents, width))
        self.first_norm, self.last_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(Block(sizes) for _ in range(sizes.depth)))
        self.output = nn.Conv2d(width, sizes.code_width, 1)
        self.n_latents = sizes.latents

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patch_embedding(image).flatten(2).transpose(1, 2)
        batch = patches.shape[0]
        x = torch.cat([self.class_token.expand(batch, -1, -1), patches], dim=1) + self.position
        x = self.first_norm(torch.cat([x, self.latents.expand(batch, -1, -1)], dim=1))
        x = self.blocks(x.transpose(0, 1)).transpose(0, 1)
        latents = self.last_norm(x[:, -self.n_latents :])
        return self.output(latents.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)


class PixelDecoder(nn.Module):
    """codes [B, Q, code_width] -> image [B, 3, h*p, w*p]; Q may be less than the latents it was made for."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        self.sizes = sizes
        self.embedding = nn.Linear(sizes.code_width, width)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.mask_token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1 + sizes.n_patches, width))
        self.latent_position = nn.Parameter(torch.randn(sizes.latents, width))
        self.first_norm, self.last_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(Block(sizes) for _ in range(sizes.depth)))
        self.head = nn.Linear(width, 3 * sizes.patch**2)

    def forward(self, codes: Tensor) -> Tensor:
        latents = self.embedding(codes) + self.latent_position[: codes.shape[1]]
        batch, n_patches = codes.shape[0], self.sizes.n_patches
        masks = self.mask_token.expand(batch, n_patches, -1)
        x = torch.cat([self.class_token.expand(batch, -1, -1), masks], dim=1) + self.position
        x = self.first_norm(torch.cat([x, latents], dim=1))
        x = self.blocks(x.transpose(0, 1)).transpose(0, 1)
        pixels = self.head(self.last_norm(x[:, 1 : 1 + n_patches]))
        return patches_to_images(pixels, self.sizes.grid, self.sizes.patch)


class TiTok(nn.Module):
    """image [B, 3, h*p, w*p] -> reconstruction (same shape), code indices [B, Q]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.encoder = LatentEncoder(sizes)
        self.quantizer = CosineQuantizer(sizes.codes, sizes.code_width)
        self.decoder = PixelDecoder(sizes)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        values, index = self.quantizer(self.encoder(image))
        return self.decoder(values), index


def build(**sizes: int) -> nn.Module:
    return TiTok(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    s = Sizes(**sizes)
    return {"image": seeded_normal(seed, batch, 3, s.grid * s.patch, s.grid * s.patch)}


def truth(**sizes: int) -> _truth.Truth:
    s = Sizes(**sizes)
    # In the encoder the latents are the suffix that must stay; patches may go. The decoder returns every patch.
    paths = [f"{half}.blocks.{i}" for half in ("encoder", "decoder") for i in range(s.depth)]
    return {
        "attention": [_truth.attention(f"{path}.attention", s.heads, s.head_dim) for path in paths],
        "mlp": [_truth.mlp(f"{path}.mlp", s.hidden) for path in paths],
    }


TRUTH = truth()
DYNAMIC = {"image": {0: "batch"}}
COLLIDING = {
    "grid": 2,
    "patch": 4,
    "latents": 4,
    "codes": 4,
    "code_width": 4,
    "heads": 4,
    "head_dim": 4,
    "hidden": 16,
}
