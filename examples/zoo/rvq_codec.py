"""Neural audio codec: convolutional encoder, residual vector quantization, decoder with an inverse-DFT head.

Ji et al., "WavTokenizer", ICLR 2025, and "Language-Codec", 2024; the encoder is SEANet's (Defossez et al., "High
Fidelity Neural Audio Compression", 2022), the head that of Vocos (Siuzdak, ICLR 2024).
torch.istft works on complex numbers, which ONNX has not: the inverse DFT with its window is a constant matrix here, and
overlap-add a transposed convolution with the identity as kernel. Simplified: few channels, one embedding for the
adaptive norms, as at inference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from zoo import _truth
from zoo._layers import seeded_normal


@dataclass(frozen=True)
class Sizes:
    frames: int = 8
    channels: int = 6
    stride: int = 3
    """Of each of the two strided convolutions; a frame is stride^2 samples."""
    code_width: int = 10
    codes: int = 16
    levels: int = 3
    width: int = 16
    hidden: int = 24
    depth: int = 2

    @property
    def hop(self) -> int:
        return self.stride**2


class ReflectConv1d(nn.Module):
    """Weight-normalized convolution, reflected at the borders; [B, C, T] -> [B, C', T / stride]."""

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        extra = kernel - stride
        self.padding = (extra - extra // 2, extra // 2)
        self.convolution = weight_norm(nn.Conv1d(channels, out_channels, kernel, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(F.pad(x, self.padding, mode="reflect"))


class Encoder(nn.Module):
    """waveform [B, 1, T] -> [B, frames, code_width]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        n, stride = sizes.channels, sizes.stride
        self.convolutions = nn.Sequential(
            ReflectConv1d(1, n, 5),
            nn.ELU(),
            ReflectConv1d(n, 2 * n, 2 * stride, stride),
            nn.ELU(),
            ReflectConv1d(2 * n, 4 * n, 2 * stride, stride),
        )
        self.lstm = nn.LSTM(4 * n, 4 * n, num_layers=2)
        self.output = nn.Sequential(nn.ELU(), ReflectConv1d(4 * n, sizes.code_width, 3))

    def forward(self, waveform: Tensor) -> Tensor:
        x = self.convolutions(waveform).permute(2, 0, 1)
        x = x + self.lstm(x)[0]
        return self.output(x.permute(1, 2, 0)).transpose(1, 2)


class ResidualQuantizer(nn.Module):
    """Each level codes what the levels before left over; x [B, T, W] -> values [B, T, W], codes [B, T, levels]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.codebooks = nn.ParameterList(
            torch.randn(sizes.codes, sizes.code_width) * 0.5**level for level in range(sizes.levels)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, codes = torch.zeros_like(x), []
        for codebook in self.codebooks:
            rest = x - values
            squares = rest.square().sum(-1, keepdim=True) + codebook.square().sum(-1)
            code = (squares - 2 * rest @ codebook.t()).argmin(-1)
            values = values + F.embedding(code, codebook)
            codes.append(code)
        return values, torch.stack(codes, dim=-1)


class ConvAttention(nn.Module):
    """Single-head attention over time whose projections are convolutions; [B, C, T] -> [B, C, T]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.query, self.key, self.value, self.output = (nn.Conv1d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        query, key, value = self.query(normed), self.key(normed), self.value(normed)
        weights = (torch.bmm(query.transpose(1, 2), key) * query.shape[1] ** -0.5).softmax(-1)
        return x + self.output(torch.bmm(value, weights.transpose(1, 2)))


class ConvNeXt1d(nn.Module):
    """Depthwise convolution, norm whose scale and shift are embeddings, MLP, layer scale; [B, C, T] -> [B, C, T]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.scale, self.shift = nn.Embedding(4, width), nn.Embedding(4, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.layer_scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, bandwidth: Tensor) -> Tensor:
        y = self.depthwise(x).transpose(1, 2)
        y = F.layer_norm(y, y.shape[-1:]) * self.scale(bandwidth) + self.shift(bandwidth)
        y = self.layer_scale * self.down(F.gelu(self.up(y)))
        return x + y.transpose(1, 2)


def inverse_dft(n_fft: int) -> Tensor:
    """Windowed inverse DFT of real signals: [real; imaginary parts of n_fft/2 + 1 bins] -> n_fft samples."""
    bins, samples = torch.arange(n_fft // 2 + 1).double(), torch.arange(n_fft).double()
    angle = 2 * torch.pi * bins[:, None] * samples[None] / n_fft
    weight = torch.full_like(bins, 2.0)  # each bin but the first and the last stands for its mirror image too
    weight[0] = weight[-1] = 1.0
    matrix = torch.cat([weight[:, None] * angle.cos(), -weight[:, None] * angle.sin()]) / n_fft
    return (matrix * torch.hann_window(n_fft, dtype=torch.float64)).float()


class InverseDftHead(nn.Module):
    """[B, frames, C] -> waveform [B, frames * hop]: magnitudes and phases, inverse DFT, overlap-add."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.hop, n_fft = sizes.hop, 4 * sizes.hop
        self.trim = (n_fft - sizes.hop) // 2
        self.spectrum = nn.Linear(sizes.width, n_fft + 2)
        self.register_buffer("inverse_dft", inverse_dft(n_fft))
        self.register_buffer("overlap_add", torch.eye(n_fft).unsqueeze(1))
        squares = torch.hann_window(n_fft).square()[None, :, None].expand(1, n_fft, sizes.frames)
        self.register_buffer("envelope", self._overlap(squares))

    def forward(self, x: Tensor) -> Tensor:
        magnitude, phase = self.spectrum(x).chunk(2, dim=-1)
        magnitude = magnitude.exp().clamp(max=100.0)
        parts = torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], dim=-1)
        return self._overlap((parts @ self.inverse_dft).transpose(1, 2)) / self.envelope

    def _overlap(self, frames: Tensor) -> Tensor:
        """[B, n_fft, frames] -> [B, frames * hop]."""
        signal = F.conv_transpose1d(frames, self.overlap_add, stride=self.hop)
        return signal.squeeze(1)[:, self.trim : self.trim + frames.shape[2] * self.hop]


class RvqCodec(nn.Module):
    """waveform [B, 1, frames * hop] -> reconstruction [B, frames * hop], codes [B, frames, levels]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.encoder = Encoder(sizes)
        self.quantizer = ResidualQuantizer(sizes)
        self.embedding = nn.Conv1d(sizes.code_width, sizes.width, 7, padding=3)
        self.attention = ConvAttention(sizes.width)
        self.blocks = nn.ModuleList(ConvNeXt1d(sizes.width, sizes.hidden) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width)
        self.head = InverseDftHead(sizes)
        self.register_buffer("bandwidth", torch.tensor(2))

    def forward(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        values, codes = self.quantizer(self.encoder(waveform))
        x = self.attention(self.embedding(values.transpose(1, 2)))
        for block in self.blocks:
            x = block(x, self.bandwidth)
        return self.head(self.norm(x.transpose(1, 2))), codes


def build(**sizes: int) -> nn.Module:
    return RvqCodec(Sizes(**sizes))


def example(batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    s = Sizes(**sizes)
    return {"waveform": seeded_normal(seed, batch, 1, s.frames * s.hop)}


def truth(**sizes: int) -> _truth.Truth:
    s = Sizes(**sizes)
    return {
        "attention": [_truth.attention("attention", 1, s.width, axis="frame")],
        "mlp": [_truth.mlp(f"blocks.{i}", s.hidden) for i in range(s.depth)],
    }


TRUTH = truth()
DYNAMIC = {"waveform": {0: "batch"}}
COLLIDING = {
    "frames": 4,
    "channels": 4,
    "stride": 2,
    "code_width": 4,
    "codes": 4,
    "levels": 4,
    "width": 4,
    "hidden": 4,
}
