"""What emitted modules call for convolutions and pools whose padding torch's own operators cannot express."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
Ints = Sequence[int]


def same_pads(x: Tensor, kernel: Ints, strides: Ints, dilations: Ints, upper: bool) -> tuple[list[Any], list[Any]]:
    """Pads that keep ceil(size / stride); the odd one at the end (`upper`) or the begin."""
    begins, ends = [], []
    for i, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
        size = x.shape[2 + i]
        total = torch.sym_max(((size + s - 1) // s - 1) * s + (k - 1) * d + 1 - size, 0)
        small = total // 2
        begins.append(small if upper else total - small)
        ends.append(total - small if upper else small)
    return begins, ends


def padded(x: Tensor, begins: Sequence[Any], ends: Sequence[Any], value: Any = 0) -> Tensor:
    flat = [w for pair in zip(reversed(begins), reversed(ends), strict=True) for w in pair]
    return aten.constant_pad_nd.default(x, flat, value)


def same_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, strides: Ints, dilations: Ints, groups: int, upper: bool
) -> Tensor:
    """Convolution with auto_pad SAME."""
    begins, ends = same_pads(x, weight.shape[2:], strides, dilations, upper)
    zeros = [0] * len(strides)
    x = padded(x, begins, ends)
    return aten.convolution.default(x, weight, bias, strides, zeros, dilations, False, zeros, groups)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strides: Ints,
    dilations: Ints,
    groups: int,
    output_padding: Ints,
    pads: Ints | None,
    output_shape: Sequence[Any] | None,
    auto_pad: str,
) -> Tensor:
    """Transposed convolution, cut and padded to what pads, auto_pad or an output shape ask for."""
    rank = len(strides)
    zeros = [0] * rank
    full = aten.convolution.default(x, weight, None, strides, zeros, dilations, True, zeros, groups)
    begins, ends = [], []
    for i in range(rank):
        natural = full.shape[2 + i] + output_padding[i]
        if output_shape is None and not auto_pad.startswith("SAME"):
            begin, end = (pads[i], pads[i + rank]) if pads is not None else (0, 0)
        else:
            wanted = output_shape[i] if output_shape is not None else x.shape[2 + i] * strides[i]
            total = torch.sym_max(natural - wanted, 0)
            begin = total - total // 2 if auto_pad == "SAME_LOWER" else total // 2
            end = natural - wanted - begin
        begins.append(-begin)
        ends.append(output_padding[i] - end)
    full = padded(full, begins, ends)
    return full if bias is None else full + bias.reshape([1, -1] + [1] * rank)


def integer_conv(
    x: Tensor,
    weight: Tensor,
    x_zero: Tensor | None,
    weight_zero: Tensor | None,
    strides: Ints,
    pads: Ints | None,
    dilations: Ints,
    groups: int,
    auto_pad: str,
) -> Tensor:
    """int32 convolution of bytes, in float64: all sums are below 2**53 and therefore exact."""
    wide, kernel = x.to(torch.float64), weight.to(torch.float64)
    if x_zero is not None:
        wide = wide - x_zero.to(torch.float64)
    if weight_zero is not None:
        kernel = kernel - weight_zero.to(torch.float64).reshape([-1] + [1] * (weight.ndim - 1))
    return any_conv(wide, kernel, None, strides, pads, dilations, groups, auto_pad).to(torch.int32)


def any_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    strides: Ints,
    pads: Ints | None,
    dilations: Ints,
    groups: int,
    auto_pad: str,
) -> Tensor:
    rank = len(strides)
    if auto_pad.startswith("SAME"):
        return same_conv(x, weight, bias, strides, dilations, groups, auto_pad == "SAME_UPPER")
    begins, ends = (list(pads[:rank]), list(pads[rank:])) if pads is not None else ([0] * rank, [0] * rank)
    zeros = [0] * rank
    x = padded(x, begins, ends)
    return aten.convolution.default(x, weight, bias, strides, zeros, dilations, False, zeros, groups)


# -- pools -------------------------------------------------------------------------------------------------------------


def _pool_pads(
    x: Tensor, kernel: Ints, strides: Ints, dilations: Ints, pads: Ints | None, auto_pad: str, ceil_mode: bool
) -> tuple[list[Any], list[Any], list[Any]]:
    """Begins and ends of the padding, and how far the last windows reach beyond it."""
    rank = len(kernel)
    if auto_pad.startswith("SAME"):
        begins, ends = same_pads(x, kernel, strides, dilations, auto_pad == "SAME_UPPER")
    elif pads is None or auto_pad == "VALID":
        begins, ends = [0] * rank, [0] * rank
    else:
        begins, ends = list(pads[:rank]), list(pads[rank:])
    beyond: list[Any] = [0] * rank
    for i in range(rank if ceil_mode else 0):
        length = x.shape[2 + i] + begins[i] + ends[i]
        window = (kernel[i] - 1) * dilations[i] + 1
        steps = (length - window + strides[i] - 1) // strides[i]
        # A window that would start in the padding at the end is none.
        steps = torch.sym_min(steps, (x.shape[2 + i] + begins[i] - 1) // strides[i])
        beyond[i] = torch.sym_max(steps * strides[i] + window - length, 0)
    return begins, ends, beyond


def windows(x: Tensor, kernel: Ints, strides: Ints, dilations: Ints) -> Tensor:
    """[N, C, *spatial] -> [N, C, *positions, *kernel]"""
    for i, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
        x = x.unfold(2 + i, (k - 1) * d + 1, s)[..., ::d]
    return x


def average_pool(
    x: Tensor,
    kernel: Ints,
    strides: Ints,
    dilations: Ints,
    pads: Ints | None,
    auto_pad: str,
    ceil_mode: bool,
    count_padding: bool,
) -> Tensor:
    begins, ends, beyond = _pool_pads(x, kernel, strides, dilations, pads, auto_pad, ceil_mode)
    outer = [e + b for e, b in zip(ends, beyond, strict=True)]
    last = list(range(-len(kernel), 0))
    total = torch.sum(windows(padded(x, begins, outer), kernel, strides, dilations), last)
    counted = torch.ones([1, 1, *x.shape[2:]], dtype=x.dtype, device=x.device)
    if count_padding:
        counted = padded(padded(counted, begins, ends, 1), [0] * len(kernel), beyond)
    else:
        counted = padded(counted, begins, outer)
    return total / torch.sum(windows(counted, kernel, strides, dilations), last)


def lp_pool(
    x: Tensor, kernel: Ints, strides: Ints, dilations: Ints, pads: Ints | None, auto_pad: str, ceil_mode: bool, p: int
) -> Tensor:
    begins, ends, beyond = _pool_pads(x, kernel, strides, dilations, pads, auto_pad, ceil_mode)
    powers = padded(torch.abs(x) ** p, begins, [e + b for e, b in zip(ends, beyond, strict=True)])
    return torch.sum(windows(powers, kernel, strides, dilations), list(range(-len(kernel), 0))) ** (1.0 / p)


def max_pool(
    x: Tensor,
    kernel: Ints,
    strides: Ints,
    dilations: Ints,
    pads: Ints | None,
    auto_pad: str,
    ceil_mode: bool,
    column_major: bool,
) -> tuple[Tensor, Tensor]:
    """The largest element of each window and its position in the flattened input."""
    begins, ends, beyond = _pool_pads(x, kernel, strides, dilations, pads, auto_pad, ceil_mode)
    outer = [e + b for e, b in zip(ends, beyond, strict=True)]
    lowest = float("-inf") if x.dtype.is_floating_point else torch.iinfo(x.dtype).min
    rank = len(kernel)
    parts = windows(padded(x, begins, outer, lowest), kernel, strides, dilations).flatten(-rank)
    at = windows(padded(_positions(x, rank, column_major), begins, outer), kernel, strides, dilations).flatten(-rank)
    best = torch.argmax(parts, -1, True)
    return parts.gather(-1, best).squeeze(-1), at.expand(parts.shape).gather(-1, best).squeeze(-1)


def _positions(x: Tensor, rank: int, column_major: bool) -> Tensor:
    """Position of each element in the flattened tensor, [N, C, *spatial]."""
    spatial = list(x.shape[2:])
    count = math.prod(spatial)
    plane = torch.arange(count, device=x.device)
    if column_major:
        plane = plane.reshape(spatial[::-1]).permute(list(range(rank))[::-1])
    else:
        plane = plane.reshape(spatial)
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device) * count
    return planes.reshape([x.shape[0], x.shape[1]] + [1] * rank) + plane


def global_average(x: Tensor) -> Tensor:
    return torch.mean(x, list(range(2, x.ndim)), True)


def global_max(x: Tensor) -> Tensor:
    return torch.amax(x, list(range(2, x.ndim)), True)


def global_lp(x: Tensor, p: int) -> Tensor:
    return torch.sum(torch.abs(x) ** p, list(range(2, x.ndim)), True) ** (1.0 / p)


def column_to_image(
    x: Tensor, shape: Sequence[Any], block: Sequence[Any], strides: Ints, dilations: Ints, pads: Ints
) -> Tensor:
    """Col2Im: columns [N, C*prod(block), L] summed where they overlap in an image of `shape`."""
    rank = len(strides)
    padded_shape = [shape[i] + pads[i] + pads[i + rank] for i in range(rank)]
    steps = [(padded_shape[i] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1 for i in range(rank)]
    batch, channels = x.shape[0], x.shape[1] // math.prod(block)
    at = torch.zeros([1], dtype=torch.int64, device=x.device)
    for axis in range(rank):
        kernel = torch.arange(block[axis], device=x.device) * dilations[axis]
        start = torch.arange(steps[axis], device=x.device) * strides[axis]
        row = kernel.reshape([-1] + [1] * rank) + start.reshape([1] + [-1 if i == axis else 1 for i in range(rank)])
        row = row.reshape([block[axis] if i == axis else 1 for i in range(rank)] + list(row.shape[1:]))
        at = at * padded_shape[axis] + row
    at = at.expand([*block, *steps]).reshape(-1)
    flat = torch.zeros([batch, channels, math.prod(padded_shape)], dtype=x.dtype, device=x.device)
    made = flat.index_add(2, at, x.reshape([batch, channels, -1])).reshape([batch, channels, *padded_shape])
    for axis in range(rank):
        made = aten.slice.Tensor(made, 2 + axis, pads[axis], pads[axis] + shape[axis])
    return made
