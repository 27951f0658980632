"""What emitted modules call to normalize with ONNX's semantics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _computed_in(x: Tensor, stash: torch.dtype | None) -> Tensor:
    """Half precision is normalized in `stash`; a wider type stays."""
    if stash is None or x.dtype not in (torch.float16, torch.bfloat16):
        return x
    return x.to(stash)


def layer_norm(
    x: Tensor, scale: Tensor, bias: Tensor | None, axis: int, eps: float, stash: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Over all dims from `axis` on; with the mean and the inverse deviation."""
    axes = list(range(axis + x.ndim if axis < 0 else axis, x.ndim))
    wide = _computed_in(x, stash)
    mean = torch.mean(wide, axes, True)
    centred = wide - mean
    inverse = torch.rsqrt(torch.mean(centred * centred, axes, True) + eps)
    normal = (centred * inverse).to(x.dtype) * scale
    return normal if bias is None else normal + bias, mean, inverse


def rms_norm(x: Tensor, scale: Tensor, axis: int, eps: float, stash: torch.dtype | None) -> Tensor:
    axes = list(range(axis + x.ndim if axis < 0 else axis, x.ndim))
    wide = _computed_in(x, stash)
    return (wide * torch.rsqrt(torch.mean(wide * wide, axes, True) + eps)).to(x.dtype) * scale


def group_norm_per_group(x: Tensor, scale: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """Opset 18: one scale and bias for each group."""
    repeats = x.shape[1] // groups
    return torch.group_norm(x, groups, scale.repeat_interleave(repeats), bias.repeat_interleave(repeats), eps)


def batch_norm_in_training(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float, momentum: float
) -> tuple[Tensor, Tensor, Tensor]:
    """By the statistics of the batch; with the running ones moved toward them."""
    axes = [a for a in range(x.ndim) if a != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    own_mean = torch.mean(x, axes)
    centred = x - own_mean.reshape(shape)
    own_variance = torch.mean(centred * centred, axes)
    normal = centred * torch.rsqrt(own_variance + eps).reshape(shape) * scale.reshape(shape) + bias.reshape(shape)
    moved = [old * momentum + new * (1 - momentum) for old, new in ((mean, own_mean), (variance, own_variance))]
    return normal.to(x.dtype), moved[0], moved[1]


def lp_normalize(x: Tensor, axis: int, p: int) -> Tensor:
    """Zero where the norm is zero."""
    norm = torch.sum(torch.abs(x), axis, True) if p == 1 else torch.sqrt(torch.sum(x * x, axis, True))
    return torch.where(norm == 0, 0, x / torch.where(norm == 0, 1, norm))


def local_response_norm(x: Tensor, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    """Over `size` channels around each: one more after it than before when the size is even."""
    before = (size - 1) // 2
    squares = aten.constant_pad_nd.default(x * x, [0, 0] * (x.ndim - 2) + [before, size - 1 - before], 0)
    total: Any = sum(aten.slice.Tensor(squares, 1, i, i + x.shape[1]) for i in range(size))
    return x / torch.pow(bias + alpha / size * total, beta)


def mean_variance_norm(x: Tensor, axes: list[int]) -> Tensor:
    mean = torch.mean(x, axes, True)
    deviation = torch.sqrt(torch.mean(x * x, axes, True) - mean * mean)
    return (x - mean) / (deviation + 1e-9)
