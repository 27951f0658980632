"""What emitted modules call to resample: ONNX Resize with all of its modes, one axis after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def float_list(values: Tensor) -> list[Any]:
    return [v.item() for v in values.reshape(-1).unbind(0)]


def resize(
    x: Tensor,
    scales: Sequence[float] | None,
    sizes: Sequence[Any] | None,
    axes: Sequence[int] | None,
    roi: Sequence[float] | None,
    *,
    kind: str,
    coordinates: str,
    nearest: str,
    cubic: float = -0.75,
    exclude_outside: bool = False,
    extrapolation: float = 0.0,
    antialias: bool = False,
    policy: str = "stretch",
) -> Tensor:
    axes = list(range(x.ndim)) if axes is None else [a % x.ndim for a in axes]
    plans = _plans(x, axes, scales, sizes, policy)
    dtype = x.dtype
    work = x if dtype.is_floating_point or kind == "nearest" else x.to(torch.float64)
    for i, axis in enumerate(axes):
        size, scale = plans[i]
        region = (roi[i], roi[i + len(axes)]) if roi is not None else (0.0, 1.0)
        if scale == 1.0 and region == (0.0, 1.0):
            continue
        source, outside = _source(work.shape[axis], size, scale, coordinates, region, x.device, kind == "nearest")
        if kind == "nearest":
            work = work.index_select(axis, _nearest(source, nearest).clamp(min=0).clamp(max=work.shape[axis] - 1))
        else:
            work = _interpolated(work, axis, source, scale, kind, cubic, exclude_outside, antialias)
        if coordinates == "tf_crop_and_resize":
            shape = [-1 if d == axis else 1 for d in range(x.ndim)]
            work = torch.where(outside.reshape(shape), torch.full_like(work, extrapolation), work)
    return work if work.dtype == dtype else _rounded(work, dtype)


def _rounded(work: Tensor, dtype: torch.dtype) -> Tensor:
    limits = torch.iinfo(dtype)
    return torch.clamp(torch.trunc(work), limits.min, limits.max).to(dtype)


def _plans(
    x: Tensor, axes: Sequence[int], scales: Sequence[float] | None, sizes: Sequence[Any] | None, policy: str
) -> list[tuple[Any, Any]]:
    """Size and scale of each axis."""
    if sizes is None:
        given = scales or ()
        return [
            (x.shape[a], 1.0) if s == 1.0 else (_floor(x.shape[a] * s), s) for a, s in zip(axes, given, strict=True)
        ]
    if policy == "stretch":
        return [
            (n, 1.0) if isinstance(n, int) and n == x.shape[a] else (n, n / x.shape[a])
            for a, n in zip(axes, sizes, strict=True)
        ]
    ratios = [n / x.shape[a] for a, n in zip(axes, sizes, strict=True)]
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return [(_floor(scale * x.shape[a] + 0.5), scale) for a in axes]


def _floor(number: Any) -> Any:
    return math.floor(number)


def _source(
    length: Any, size: Any, scale: Any, coordinates: str, region: tuple[float, float], device: Any, single: bool
) -> tuple[Tensor, Tensor]:
    """Where each output position lies in the input, and whether that is outside of it.

    For the nearest element in float32, in which the runtime and torch compute the position that they round.
    """
    at = torch.arange(size, device=device, dtype=torch.float32 if single else torch.float64)
    full = length * scale
    if coordinates == "align_corners":
        source = at * 0 if _is_one(size) else at * (length - 1) / (full - 1)
    elif coordinates == "asymmetric":
        source = at / scale
    elif coordinates == "tf_crop_and_resize":
        start, end = region
        if _is_one(size):
            source = at * 0 + 0.5 * (start + end) * (length - 1)
        else:
            source = start * (length - 1) + at * (end - start) * (length - 1) / (full - 1)
    elif coordinates == "pytorch_half_pixel" and _is_one(size):
        source = at * 0 - 0.5
    elif coordinates == "half_pixel_symmetric":
        adjustment = size / full
        source = length / 2 * (1 - adjustment) + (at + 0.5) / scale - 0.5
    else:
        source = (at + 0.5) / scale - 0.5
    return source, (source < 0) | (source > length - 1)


def _is_one(size: Any) -> bool:
    return bool(size == 1)


def _nearest(source: Tensor, mode: str) -> Tensor:
    if mode == "floor":
        return torch.floor(source).to(torch.int64)
    if mode == "ceil":
        return torch.ceil(source).to(torch.int64)
    if mode == "round_prefer_ceil":
        return torch.floor(source + 0.5).to(torch.int64)
    return torch.ceil(source - 0.5).to(torch.int64)


def _interpolated(
    x: Tensor, axis: int, source: Tensor, scale: Any, kind: str, cubic: float, exclude: bool, antialias: bool
) -> Tensor:
    """The weighted sum of the neighbours of each position."""
    radius: Any = 1.0 if kind == "linear" else 2.0
    stretch: Any = min(scale, 1.0) if antialias else 1.0
    reach = math.ceil(radius / stretch)
    first = torch.floor(source).to(torch.int64) - reach + 1
    at = first.unsqueeze(1) + torch.arange(2 * reach, device=x.device)
    distance = torch.abs((at - source.unsqueeze(1)) * stretch)
    weights = _triangle(distance) if kind == "linear" else _cubic(distance, cubic)
    length = x.shape[axis]
    if exclude or antialias:
        if exclude:
            weights = torch.where((at < 0) | (at > length - 1), 0.0, weights)
        weights = weights / torch.sum(weights, 1, True)
    at = at.clamp(min=0).clamp(max=length - 1)
    rows = x.index_select(axis, at.reshape(-1)).unflatten(axis, [at.shape[0], 2 * reach])
    shape = [1] * axis + [at.shape[0], 2 * reach] + [1] * (x.ndim - axis - 1)
    return torch.sum(rows * weights.to(x.dtype).reshape(shape), axis + 1)


def _triangle(distance: Tensor) -> Tensor:
    return torch.clamp(1 - distance, min=0)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' kernel."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
