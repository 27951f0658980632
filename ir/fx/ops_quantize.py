"""What emitted modules call to quantize and dequantize, per tensor, per axis and in blocks."""

from __future__ import annotations

from typing import Any

import torch
from opgraft.ir.fx.ops_elementwise import cast_to_float8
from torch import Tensor

aten = torch.ops.aten


def _spread(parameter: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """A scale or zero point in a shape that broadcasts with `x`."""
    if parameter.ndim == 0 or (parameter.ndim == 1 and block == 0 and parameter.shape[0] == 1):
        return parameter.reshape([1] * x.ndim)
    axis = axis % x.ndim
    if block:
        repeated = torch.repeat_interleave(parameter, block, axis)
        return aten.slice.Tensor(repeated, axis, 0, x.shape[axis])
    return parameter.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def quantize(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    axis: int,
    block: int,
    dtype: torch.dtype,
    limits: tuple[int, int] | None,
    saturate: bool,
    precision: torch.dtype | None = None,
) -> Tensor:
    """round(x / scale) + zero, cut to `limits`; without limits, to a floating-point type of a byte."""
    spread = _spread(scale, x, axis, block)
    if precision is not None:
        x, spread = x.to(precision), spread.to(precision)
    scaled = x / spread if x.dtype.is_floating_point else x.to(spread.dtype) / spread
    if limits is None:
        return cast_to_float8(scaled, dtype, saturate)
    # Beyond any limit before the zero point is added, and small enough for that addition to be exact.
    rounded = torch.round(scaled.to(torch.float64)).clamp(-(2.0**31), 2.0**31 - 1)
    if zero is not None:
        rounded = rounded + _spread(zero, x, axis, block).to(torch.float64)
    return rounded.clamp(limits[0], limits[1]).to(torch.int64).to(dtype)


def dequantize(x: Tensor, scale: Tensor, zero: Tensor | None, axis: int, block: int, dtype: torch.dtype) -> Tensor:
    """(x - zero) * scale"""
    spread = _spread(scale, x, axis, block)
    if x.dtype.is_floating_point:
        return (x.to(spread.dtype) * spread).to(dtype)
    whole = x.to(torch.int64) if zero is None else x.to(torch.int64) - _spread(zero, x, axis, block).to(torch.int64)
    return (whole.to(spread.dtype) * spread).to(dtype)


def dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """To uint8 over the range of the data, which includes zero."""
    low, high = torch.clamp(torch.amin(x), max=0), torch.clamp(torch.amax(x), min=0)
    scale = (high - low) / 255
    safe = torch.where(scale == 0, 1, scale)
    zero = torch.round(torch.clamp(-low / safe, 0, 255))
    quantized = torch.clamp(torch.round(x / safe) + zero, 0, 255)
    return quantized.to(torch.uint8), scale, zero.to(torch.uint8)


def requantize(
    accumulated: Tensor,
    factor: Tensor,
    zero: Tensor,
    limits: tuple[int, int],
) -> Tensor:
    """An int32 result times the quotient of the scales, in the type of the zero point."""
    scaled = torch.round(accumulated.to(torch.float64) * factor.to(torch.float64)) + zero.to(torch.float64)
    return scaled.clamp(limits[0], limits[1]).to(zero.dtype)


def qlinear_matmul(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    wide = [_centred(a, a_zero, -1), b.to(torch.float64) - b_zero.to(torch.float64)]
    scale_a = a_scale.unsqueeze(-1) if a_scale.ndim and a_scale.shape[0] != 1 else a_scale
    factor = scale_a.to(torch.float64) * b_scale.to(torch.float64) / y_scale.to(torch.float64)
    return requantize(torch.matmul(wide[0], wide[1]), factor, y_zero, _limits(y_zero))


def _centred(a: Tensor, zero: Tensor, dim: int) -> Tensor:
    zero = zero.to(torch.float64)
    return a.to(torch.float64) - (zero.unsqueeze(dim) if zero.ndim == 1 and zero.shape[0] != 1 else zero)


def _limits(zero: Tensor) -> tuple[int, int]:
    if zero.dtype.is_floating_point:
        largest = int(torch.finfo(zero.dtype).max)
        return -largest, largest
    info = torch.iinfo(zero.dtype)
    return info.min, info.max


def qlinear_conv_result(
    accumulated: Tensor, bias: Tensor | None, x_scale: Tensor, w_scale: Tensor, y_scale: Tensor, y_zero: Tensor
) -> Tensor:
    shape = [1, -1] + [1] * (accumulated.ndim - 2)
    if bias is not None:
        accumulated = accumulated + bias.reshape(shape)
    wide: Any = w_scale.to(torch.float64).reshape(shape if w_scale.numel() != 1 else [1] * accumulated.ndim)
    factor = x_scale.to(torch.float64) * wide / y_scale.to(torch.float64)
    return requantize(accumulated, factor, y_zero, _limits(y_zero))
