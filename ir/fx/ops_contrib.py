"""What emitted modules call for ONNX Runtime's own operators."""

from __future__ import annotations

import torch
from torch import Tensor


def quick_gelu(x: Tensor, alpha: float) -> Tensor:
    return x * torch.sigmoid(alpha * x)


def fused_matmul(
    a: Tensor, b: Tensor, alpha: float, trans_a: bool, trans_b: bool, batch_a: bool, batch_b: bool
) -> Tensor:
    """alpha * a @ b; `batch_*` moves the first dim behind all but the last one first."""
    a, b = _turned(a, trans_a, batch_a), _turned(b, trans_b, batch_b)
    return torch.matmul(a, b) * alpha


def _turned(x: Tensor, transpose: bool, batch: bool) -> Tensor:
    if batch:
        x = x.movedim(0, -2)
    return x.transpose(-1, -2) if transpose and x.ndim > 1 else x


def skip_layer_norm(
    x: Tensor, skip: Tensor, scale: Tensor, beta: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = x + skip if bias is None else x + skip + bias
    mean = torch.mean(total, -1, True)
    centred = total - mean
    inverse = torch.rsqrt(torch.mean(centred * centred, -1, True) + eps)
    normal = centred * inverse * scale
    return normal if beta is None else normal + beta, mean, inverse, total


def skip_rms_norm(
    x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = x + skip if bias is None else x + skip + bias
    inverse = torch.rsqrt(torch.mean(total * total, -1, True) + eps)
    return total * inverse * scale, inverse, inverse, total


def matmul_n_bits(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bias: Tensor | None,
    width: int,
    bits: int,
    block: int,
) -> Tensor:
    """x [..., K] by a matrix [N, K] of small integers, each block of a row with a scale and a zero point of its own.

    `codes` is [N, blocks, bytes of a block]; zero points are packed in the same way, or numbers.
    """
    rows, blocks = codes.shape[0], codes.shape[1]
    numbers = _unpacked(codes, bits).reshape([rows, blocks, block]).to(scales.dtype)
    scales = scales.reshape([rows, blocks, 1])
    if zeros is None:
        numbers = numbers - 2 ** (bits - 1)
    elif zeros.dtype == torch.uint8:
        zeros = _unpacked(zeros.reshape([rows, -1]), bits).reshape([rows, -1])[:, :blocks]
        numbers = numbers - zeros.unsqueeze(-1).to(scales.dtype)
    else:
        numbers = numbers - zeros.reshape([rows, blocks, 1])
    weight = (numbers * scales).reshape([rows, -1])[:, :width]
    return torch.nn.functional.linear(x, weight, bias)


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """Bytes to the integers in them, the lowest bits first, along a new last dim."""
    return torch.stack([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)], -1)
