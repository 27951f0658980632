"""What emitted modules call to look up, scatter and select with ONNX's semantics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def gather(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    return aten.index.Tensor(x, [None] * axis + [indices.to(torch.int64)])


def gather_elements(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    indices = indices.to(torch.int64)
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices))


def gather_nd(x: Tensor, indices: Tensor, batch_dims: int) -> Tensor:
    indices = indices.to(torch.int64)
    parts = list(indices.unbind(-1))
    batch = _batch_positions(x, indices.ndim - 1, batch_dims)
    return aten.index.Tensor(x, [*batch, *parts])


def _batch_positions(x: Tensor, rank: int, batch_dims: int) -> list[Tensor]:
    """For each batch dim its own positions, shaped to broadcast with indices of `rank` dims."""
    return [
        torch.arange(x.shape[d], device=x.device).reshape([-1 if i == d else 1 for i in range(rank)])
        for d in range(batch_dims)
    ]


def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, axis: int, reduction: str) -> Tensor:
    indices = indices.to(torch.int64)
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    if reduction == "none":
        return torch.scatter(x, axis, indices, updates)
    return torch.scatter_reduce(x, axis, indices, updates, _REDUCTIONS[reduction], include_self=True)


def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, reduction: str) -> Tensor:
    indices = indices.to(torch.int64)
    parts = list(indices.unbind(-1))
    if reduction == "none":
        return aten.index_put.default(x, parts, updates)
    if reduction == "add":
        return aten.index_put.default(x, parts, updates, True)
    return _scatter_reduced(x, parts, updates, reduction)


def _scatter_reduced(x: Tensor, parts: Sequence[Tensor], updates: Tensor, reduction: str) -> Tensor:
    """Through the flattened leading dims, for reductions that index_put does not have."""
    depth = len(parts)
    position = torch.zeros_like(parts[0])
    rows: Any = 1
    for axis, part in enumerate(parts):
        position = position * x.shape[axis] + torch.where(part < 0, part + x.shape[axis], part)
        rows = rows * x.shape[axis]
    rest = list(x.shape[depth:])
    flat = x.reshape([rows, *rest])
    n_updates = position.numel()
    index = position.reshape([n_updates] + [1] * len(rest)).expand([n_updates, *rest])
    values = updates.reshape([n_updates, *rest])
    made = torch.scatter_reduce(flat, 0, index, values, _REDUCTIONS[reduction], include_self=True)
    return made.reshape(x.shape)


def tensor_scatter(cache: Tensor, update: Tensor, start: Tensor | None, axis: int, circular: bool) -> Tensor:
    """Write `update` into the cache along `axis`, from `start[b]` on for batch element b."""
    axis = axis % cache.ndim
    length, count = cache.shape[axis], update.shape[axis]
    at = torch.arange(count, device=cache.device)
    if start is None:
        at = at.reshape([1, count])
    else:
        at = start.to(torch.int64).reshape([-1, 1]) + at
    if circular:
        at = torch.remainder(at, length)
    at = at.reshape([at.shape[0]] + [1] * (axis - 1) + [count] + [1] * (cache.ndim - axis - 1))
    return torch.scatter(cache, axis, at.expand(update.shape), update)


def one_hot(indices: Tensor, depth: Any, values: Tensor, axis: int) -> Tensor:
    """Indices out of range make a row of off-values."""
    axis = axis + indices.ndim + 1 if axis < 0 else axis
    classes = torch.arange(depth, device=indices.device)
    wanted = indices.to(torch.int64)
    wanted = torch.where(wanted < 0, wanted + depth, wanted).unsqueeze(axis)
    shape = [-1 if i == axis else 1 for i in range(indices.ndim + 1)]
    return torch.where(wanted == classes.reshape(shape), values[1], values[0])


def compress(x: Tensor, condition: Tensor, axis: int | None) -> Tensor:
    if axis is None:
        x, axis = x.reshape(-1), 0
    positions = torch.nonzero(condition).reshape(-1)
    return torch.index_select(x, axis, positions)


def non_zero(x: Tensor) -> Tensor:
    return torch.nonzero(x).t()


def unique(x: Tensor, axis: int | None, is_sorted: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distinct elements or slices, in order or as they first occur: with first positions, inverse and counts."""
    if axis is None:
        values, inverse, counts = torch.unique(x, sorted=True, return_inverse=True, return_counts=True)
        inverse, along = inverse.reshape(-1), 0
    else:
        values, inverse, counts = torch.unique(x, sorted=True, return_inverse=True, return_counts=True, dim=axis)
        along = axis
    positions = torch.arange(inverse.shape[0], device=x.device)
    start = torch.full([counts.shape[0]], inverse.shape[0], dtype=torch.int64, device=x.device)
    first = torch.scatter_reduce(start, 0, inverse, positions, "amin", include_self=True)
    if is_sorted:
        return values, first, inverse, counts
    order = torch.argsort(first)
    rank = torch.empty_like(order).scatter(0, order, torch.arange(order.shape[0], device=x.device))
    return values.index_select(along, order), first[order], rank[inverse], counts[order]


def max_unpool(x: Tensor, indices: Tensor, shape: Sequence[Any], outer: Sequence[Any] | None) -> Tensor:
    """Put each element at its position in a flattened tensor of `shape`, which is padded to `outer` at the ends."""
    total: Any = 1
    for size in shape:
        total = total * size
    flat = torch.zeros([total], dtype=x.dtype, device=x.device)
    made = flat.scatter(0, indices.reshape(-1), x.reshape(-1)).reshape(list(shape))
    if outer is None:
        return made
    widths = [w for own, whole in zip(reversed(shape), reversed(outer), strict=True) for w in (0, whole - own)]
    return aten.constant_pad_nd.default(made, widths, 0)
