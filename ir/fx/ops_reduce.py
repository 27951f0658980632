"""What emitted modules call to reduce, sort and accumulate with ONNX's semantics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def reduce_extreme(x: Tensor, axes: Sequence[int], keep: bool, largest: bool) -> Tensor:
    """Maximum or minimum; over no elements the smallest or largest number of the type."""
    function = torch.amax if largest else torch.amin
    if x.dtype == torch.bool:
        return reduce_extreme(x.to(torch.uint8), axes, keep, largest).to(torch.bool)
    axes = [a % x.ndim for a in axes] or list(range(x.ndim))
    if any(isinstance(x.shape[a], int) and x.shape[a] == 0 for a in axes):
        shape = [1 if i in axes else d for i, d in enumerate(x.shape) if keep or i not in axes]
        limit = _limit(x.dtype, not largest)
        return torch.full(shape, limit, dtype=x.dtype, device=x.device)
    return function(x, axes, keep)


def _limit(dtype: torch.dtype, largest: bool) -> Any:
    if dtype.is_floating_point:
        return float("inf") if largest else float("-inf")
    return torch.iinfo(dtype).max if largest else torch.iinfo(dtype).min


def reduce_mean(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """Mean of integers, toward zero as the division of integers is."""
    axes = [a % x.ndim for a in axes] or list(range(x.ndim))
    count = 1
    for axis in axes:
        count = count * x.shape[axis]
    return torch.div(torch.sum(x, axes, keep), count, rounding_mode="trunc").to(x.dtype)


def reduce_product(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    axes = sorted((a % x.ndim for a in axes), reverse=True) or list(range(x.ndim))[::-1]
    for axis in axes:
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


def reduce_l2(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    if x.dtype.is_floating_point:
        return torch.sqrt(torch.sum(x * x, list(axes), keep))
    wide = x.to(torch.float64)
    return torch.sqrt(torch.sum(wide * wide, list(axes), keep)).to(x.dtype)


def reduce_log_sum_exp(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    axes = [a % x.ndim for a in axes] or list(range(x.ndim))
    wide = x if x.dtype.is_floating_point else x.to(torch.float64)
    return torch.logsumexp(wide, axes, keep).to(x.dtype) if axes else wide.to(x.dtype)


def reduce_log_sum(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    wide = x if x.dtype.is_floating_point else x.to(torch.float64)
    return torch.log(torch.sum(wide, list(axes), keep)).to(x.dtype)


def arg_extreme(x: Tensor, axis: int, keep: bool, largest: bool, last: bool) -> Tensor:
    """Position of the extreme, the first or the last of equal ones."""
    function = torch.argmax if largest else torch.argmin
    if x.dtype == torch.bool:
        x = x.to(torch.uint8)
    if not last:
        return function(x, axis, keep)
    return x.shape[axis] - 1 - function(torch.flip(x, [axis]), axis, keep)


def top_k(x: Tensor, k: int, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    """Of equal elements the one with the lower index comes first."""
    if x.dtype in (torch.uint16, torch.uint32, torch.uint64):
        values, indices = torch.sort(x.to(torch.int64), dim=axis, descending=largest, stable=True)
        values = values.to(x.dtype)
    else:
        values, indices = torch.sort(x, dim=axis, descending=largest, stable=True)
    return aten.slice.Tensor(values, axis, 0, k), aten.slice.Tensor(indices, axis, 0, k)


def cumulate(x: Tensor, axis: int, exclusive: bool, reverse: bool, product: bool) -> Tensor:
    if reverse:
        x = torch.flip(x, [axis])
    if exclusive:
        # Shifted by one: the last element is left out, a neutral one comes first.
        first = torch.full_like(aten.slice.Tensor(x, axis, 0, 1), 1 if product else 0)
        x = torch.cat([first, aten.slice.Tensor(x, axis, 0, -1)], axis)
    x = (torch.cumprod if product else torch.cumsum)(x, axis, dtype=x.dtype)
    return torch.flip(x, [axis]) if reverse else x


def softmax_from(x: Tensor, axis: int, logarithm: bool) -> Tensor:
    """Before opset 13: over all dims from `axis` on."""
    axis = axis + x.ndim if axis < 0 else axis
    flat = x.flatten(axis) if axis < x.ndim else x.unsqueeze(-1)
    function = torch.log_softmax if logarithm else torch.softmax
    return function(flat, -1).reshape(x.shape)


def hardmax(x: Tensor, axis: int) -> Tensor:
    winner = torch.argmax(x, axis, True)
    return torch.zeros_like(x).scatter(axis, winner, 1)


def hardmax_from(x: Tensor, axis: int) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    return hardmax(x.flatten(axis), -1).reshape(x.shape)
