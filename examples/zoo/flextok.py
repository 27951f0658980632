"""FlexTok: register tokens, finite scalar quantization, and a flow decoder conditioned on a prefix of them.

Bachmann et al., "FlexTok: Resampling Images into 1D Token Sequences of Flexible Length", ICML 2025; FSQ is from Mentzer
et al., "Finite Scalar Quantization: VQ-VAE Made Simple", ICLR 2024.
Registers attend to all patches and to earlier registers; patches only to patches. FSQ bounds each channel by tanh and
rounds it, half to even. The decoder predicts the flow of noised patches, its norms modulated by the time (adaLN);
dropped registers (nested dropout) are replaced by a learned token. Simplified: patches of an image stand for VAE
latents; a dense mask; the number of registers kept is an attribute.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import _truth
from zoo._layers import FeedForward, merge_heads, seeded_normal, split_heads


@dataclass(frozen=True)
class Sizes:
    patches: int = 9
    patch_values: int = 12
    registers: int = 4
    keep: int = 3
    heads: int = 4
    head_dim: int = 8
    hidden: int = 48
    depth: int = 1
    """Of the encoder and of the decoder."""

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


LEVELS = (8, 5, 5, 4)
"""Values that each channel of a code can take."""


class FiniteScalarQuantizer(nn.Module):
    """x [B, Q, 4] -> values in [-1, 1] of the same shape, indices [B, Q]."""

    def __init__(self) -> None:
        super().__init__()
        levels = torch.tensor(LEVELS)
        half = (levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)  # even counts have no level at zero
        self.register_buffer("half_range", half)
        self.register_buffer("offset", offset)
        self.register_buffer("shift", torch.atanh(offset / half))
        self.register_buffer("radius", (levels // 2).float())
        self.register_buffer("basis", torch.cumprod(torch.tensor((1, *LEVELS[:-1])), 0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        steps = torch.round(torch.tanh(x + self.shift) * self.half_range - self.offset)
        index = ((steps + self.radius).long() * self.basis).sum(-1)
        return steps / self.radius, index


class NormedAttention(nn.Module):
    """Queries and keys are RMS-normalized per head; [B, T, C] -> [B, T, C]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width, bias=False)
        self.query_norm, self.key_norm = nn.RMSNorm(sizes.head_dim), nn.RMSNorm(sizes.head_dim)
        self.output = nn.Linear(sizes.width, sizes.width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        query, key = self.query_norm(query), self.key_norm(key)
        return self.output(merge_heads(F.scaled_dot_product_attention(query, key, value, attn_mask=mask)))


class EncoderBlock(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.attention = NormedAttention(sizes)
        self.mlp = FeedForward(sizes.width, sizes.hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), mask)
        return x + self.mlp(self.mlp_norm(x))


class ModulatedBlock(nn.Module):
    """Scale, shift and gate of both branches come from the condition [B, C]; x [B, T, C] -> [B, T, C]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.modulation = nn.Linear(sizes.width, 6 * sizes.width)
        self.attention = NormedAttention(sizes)
        self.mlp = FeedForward(sizes.width, sizes.hidden)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (
            self.modulation(F.silu(condition)).unsqueeze(1).chunk(6, dim=-1)
        )
        x = x + gate * self.attention(F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift)
        return x + mlp_gate * self.mlp(F.layer_norm(x, x.shape[-1:]) * (1 + mlp_scale) + mlp_shift)


class FlexTok(nn.Module):
    """patches, noised (both [B, P, values]), time [B] -> flow [B, P, values], codes [B, Q]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, n_patches, n_registers = sizes.width, sizes.patches, sizes.registers
        self.n_patches, self.keep = n_patches, sizes.keep
        self.embedding, self.noised_embedding = (
            nn.Linear(sizes.patch_values, width),
            nn.Linear(sizes.patch_values, width),
        )
        self.position = nn.Parameter(torch.randn(n_patches, width))
        self.registers = nn.Parameter(torch.randn(1, n_registers, width))
        self.encoder = nn.ModuleList(EncoderBlock(sizes) for _ in range(sizes.depth))
        self.to_code, self.from_code = nn.Linear(width, len(LEVELS)), nn.Linear(len(LEVELS), width)
        self.quantizer = FiniteScalarQuantizer()
        self.dropped = nn.Parameter(torch.randn(1, 1, width))
        self.register_position = nn.Parameter(torch.randn(n_registers, width))
        self.time_embedding = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, width))
        self.decoder = nn.ModuleList(ModulatedBlock(sizes) for _ in range(sizes.depth))
        self.head = nn.Linear(width, sizes.patch_values)
        is_register = torch.arange(n_patches + n_registers) >= n_patches
        later = torch.ones(len(is_register), len(is_register), dtype=torch.bool).triu(1)
        hidden = (is_register[None] & ~is_register[:, None]) | (is_register[None] & is_register[:, None] & later)
        self.register_buffer("visible", ~hidden)

    def forward(self, patches: Tensor, noised: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        codes, index = self.quantizer(self.encode(patches))
        kept = self.from_code(codes)[:, : self.keep]
        n_dropped = codes.shape[1] - self.keep
        registers = torch.cat([kept, self.dropped.expand(kept.shape[0], n_dropped, -1)], dim=1)
        angles = torch.stack([time.sin(), time.cos()], dim=-1)
        condition = self.time_embedding(angles)
        x = torch.cat([self.noised_embedding(noised) + self.position, registers + self.register_position], dim=1)
        for block in self.decoder:
            x = block(x, condition)
        return self.head(x[:, : self.n_patches]), index

    def encode(self, patches: Tensor) -> Tensor:
        """[B, P, values] -> [B, Q, levels]."""
        x = self.embedding(patches) + self.position
        x = torch.cat([x, self.registers.expand(x.shape[0], -1, -1)], dim=1)
        for block in self.encoder:
            x = block(x, self.visible)
        return self.to_code(x[:, self.n_patches :])


def build(**sizes: int) -> nn.Module:
    return FlexTok(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    s = Sizes(**sizes)
    shape = (batch, s.patches, s.patch_values)
    time = torch.linspace(0.1, 0.9, batch)
    return {"patches": seeded_normal(seed, *shape), "noised": seeded_normal(seed + 1, *shape), "time": time}


def truth(**sizes: int) -> _truth.Truth:
    s = Sizes(**sizes)
    encoder, decoder = ([f"{half}.{i}" for i in range(s.depth)] for half in ("encoder", "decoder"))
    return {
        "attention": [
            *(_truth.attention(f"{path}.attention", s.heads, s.head_dim, mask="sparse") for path in encoder),
            *(_truth.attention(f"{path}.attention", s.heads, s.head_dim) for path in decoder),
        ],
        "mlp": [_truth.mlp(f"{path}.mlp", s.hidden) for path in (*encoder, *decoder)],
    }


TRUTH = truth()
DYNAMIC = {"patches": {0: "batch"}, "noised": {0: "batch"}, "time": {0: "batch"}}
COLLIDING = {
    "patches": 4,
    "patch_values": 4,
    "registers": 4,
    "keep": 3,
    "heads": 4,
    "head_dim": 4,
    "hidden": 16,
}
