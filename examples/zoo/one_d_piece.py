"""One-D-Piece: TiTok whose tail of latents can be dropped, for images at a variable rate.

Miwa, Sasaki, Arai, Takahashi, Yamaguchi, "One-D-Piece: Image Tokenizer Meets Quality-Controllable Compression", 2025.
Trained with random tails cut off, the first latents carry the most. At inference the number kept is a constant of the
graph: one slice between quantizer and decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from zoo import _truth, titok


@dataclass(frozen=True)
class Sizes(titok.Sizes):
    keep: int = 3
    """Latents that reach the decoder."""


class OneDPiece(titok.TiTok):
    """image [B, 3, h*p, w*p] -> reconstruction (same shape), indices of the codes kept [B, keep]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes)
        if not 1 <= sizes.keep <= sizes.latents:
            raise ValueError(f"keep is {sizes.keep}: give 1 to {sizes.latents}, the number of latents")
        self.keep = sizes.keep

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        values, index = self.quantizer(self.encoder(image))
        return self.decoder(values[:, : self.keep]), index[:, : self.keep]


def build(**sizes: int) -> nn.Module:
    return OneDPiece(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    s = Sizes(**sizes)
    return titok.example(batch, seed, grid=s.grid, patch=s.patch)


def truth(**sizes: int) -> _truth.Truth:
    return titok.truth(**{name: size for name, size in sizes.items() if name != "keep"})


TRUTH = truth()
DYNAMIC = titok.DYNAMIC
COLLIDING = {**titok.COLLIDING, "latents": 5, "keep": 4}
