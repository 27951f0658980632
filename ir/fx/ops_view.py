"""What emitted modules call to move data, where torch has no single operator of that meaning.

Like all `ops_*` modules: functions of tensors, Python numbers and lists of them, without a look at the numbers in a
tensor, so that `torch.export` and `torch.compile` trace through them. They are imported when a module is emitted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def index_tensor(
    scalars: Sequence[Any], shape: Sequence[int], dtype: torch.dtype, device: torch.device | None
) -> Tensor:
    """A tensor of Python numbers, sizes among them."""
    items = [aten.scalar_tensor.default(s, dtype=dtype, device=device) for s in scalars]
    if not shape:
        return items[0]
    return torch.stack(items).reshape(list(shape)) if items else torch.zeros(list(shape), dtype=dtype, device=device)


def to_list(values: Tensor) -> list[Any]:
    """The contents of an integer tensor as Python numbers: shapes that depend on data."""
    return [v.item() for v in values.reshape(-1).unbind(0)]


def truncated_quotient(a: int, b: int) -> int:
    """Division toward zero; without `abs`, which torch's exporter carries through all sizes that come of it."""
    # One comparison at a time: torch cannot compare two conditions on sizes.
    is_negative = a < 0 if b > 0 else a > 0
    return -(-a // b) if is_negative else a // b


def choose(condition: bool, a: int, b: int) -> int:
    return a if condition else b


def both(a: bool, b: bool) -> bool:
    return a and b


def either(a: bool, b: bool) -> bool:
    return a or b


def negate(a: bool) -> bool:
    return not a


def shape_tensor(x: Tensor, start: int = 0, end: int | None = None) -> Tensor:
    """Shape of a tensor whose rank the model does not tell."""
    sizes = list(x.shape)[start:end]
    return index_tensor(sizes, [len(sizes)], torch.int64, x.device)


def element_count(x: Tensor) -> Any:
    return x.numel()


def reshape(x: Tensor, shape: Sequence[int], allow_zero: bool) -> Tensor:
    """Reshape where 0 copies the input's dim, for shapes that only a run tells."""
    sizes = [s if allow_zero or s != 0 else x.shape[i] for i, s in enumerate(shape)]
    return x.reshape(sizes)


def flatten(x: Tensor, axis: int) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape([math.prod(x.shape[:axis]), math.prod(x.shape[axis:])])


def reverse_dims(x: Tensor) -> Tensor:
    return x.permute(list(range(x.ndim))[::-1])


def expand(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Broadcasting in both directions."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape)))


def tile(x: Tensor, repeats: Sequence[int]) -> Tensor:
    return x.repeat(list(repeats))


def unsqueeze(x: Tensor, axes: Sequence[int]) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(a + rank if a < 0 else a for a in axes):
        x = x.unsqueeze(axis)
    return x


def slice_back(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    """x[start:end:step] along `axis` for a negative step; bounds are clamped as ONNX says."""
    length = x.shape[axis]
    first = torch.sym_min(torch.sym_max(start + length if start < 0 else start, 0), length - 1)
    last = torch.sym_min(torch.sym_max(end + length if end < 0 else end, -1), length - 1)
    part = aten.slice.Tensor(x, axis, last + 1, torch.sym_max(first + 1, last + 1))
    return aten.slice.Tensor(torch.flip(part, [axis]), axis, 0, None, -step)


def slice_any(
    x: Tensor, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int]
) -> Tensor:
    """Slice whose bounds, axes or steps only a run tells."""
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step > 0:
            x = aten.slice.Tensor(x, axis, start, end, step)
        else:
            x = slice_back(x, axis, start, end, step)
    return x


def pad(x: Tensor, pads: Sequence[int], axes: Sequence[int] | None, mode: str, value: Any) -> Tensor:
    """Pad along any axes; `pads` are all begins, then all ends."""
    axes = list(range(x.ndim)) if axes is None else [a % x.ndim for a in axes]
    begins, ends = list(pads[: len(axes)]), list(pads[len(axes) :])
    if mode == "constant":
        return _pad_constant(x, axes, begins, ends, value)
    for axis, begin, end in zip(axes, begins, ends, strict=True):
        if isinstance(begin, int) and isinstance(end, int) and begin == 0 and end == 0:
            continue
        x = x.index_select(axis, _source_positions(x.shape[axis], begin, end, mode, x.device))
    return x


def _pad_constant(x: Tensor, axes: Sequence[int], begins: Sequence[Any], ends: Sequence[Any], value: Any) -> Tensor:
    widths = [[0, 0] for _ in range(x.ndim)]
    for axis, begin, end in zip(axes, begins, ends, strict=True):
        widths[axis] = [begin, end]
    flat = [w for pair in reversed(widths) for w in pair]
    if not isinstance(value, Tensor):
        return aten.constant_pad_nd.default(x, flat, value)
    # The value is a tensor: everything around the data is taken from it.
    inside = aten.constant_pad_nd.default(torch.ones_like(x, dtype=torch.bool), flat, False)
    return torch.where(inside, aten.constant_pad_nd.default(x, flat, 0), value.reshape(()).to(x.dtype))


def _source_positions(length: Any, begin: Any, end: Any, mode: str, device: torch.device) -> Tensor:
    """Where each element of the padded axis comes from."""
    at = torch.arange(length + begin + end, device=device) - begin
    if mode == "edge":
        return at.clamp(min=0).clamp(max=length - 1)
    if mode == "wrap":
        return torch.remainder(at, length)
    period = torch.sym_max(2 * (length - 1), 1)
    folded = torch.remainder(at, period)
    return torch.minimum(folded, period - folded) if not isinstance(length, int) or length > 1 else folded * 0


def split_evenly(x: Tensor, axis: int, n_parts: int) -> list[Tensor]:
    """Equal parts, the last one smaller when they do not divide the axis."""
    part = (x.shape[axis] + n_parts - 1) // n_parts
    length = x.shape[axis]
    return [
        aten.slice.Tensor(x, axis, torch.sym_min(part * i, length), torch.sym_min(part * (i + 1), length))
        for i in range(n_parts)
    ]


def depth_to_space(x: Tensor, block: int, column_first: bool) -> Tensor:
    n, c, h, w = x.shape
    if column_first:  # CRD
        parts = x.reshape([n, c // (block * block), block, block, h, w]).permute(0, 1, 4, 2, 5, 3)
    else:
        parts = x.reshape([n, block, block, c // (block * block), h, w]).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape([n, c // (block * block), h * block, w * block])


def space_to_depth(x: Tensor, block: int, column_first: bool = False) -> Tensor:
    n, c, h, w = x.shape
    parts = x.reshape([n, c, h // block, block, w // block, block])
    order = (0, 1, 3, 5, 2, 4) if column_first else (0, 3, 5, 1, 2, 4)
    return parts.permute(order).reshape([n, c * block * block, h // block, w // block])


def center_crop_pad(x: Tensor, shape: Sequence[int], axes: Sequence[int]) -> Tensor:
    for size, axis in zip(shape, axes, strict=True):
        length = x.shape[axis]
        if length > size:
            begin = (length - size) // 2
            x = aten.slice.Tensor(x, axis, begin, begin + size)
        elif length < size:
            begin = (size - length) // 2
            x = pad(x, [begin, size - length - begin], [axis], "constant", 0)
    return x


def reverse_sequence(x: Tensor, lengths: Tensor, time_axis: int, batch_axis: int) -> Tensor:
    """The first `lengths[b]` elements along time in reverse order, the rest as they are."""
    moved = x.movedim((batch_axis, time_axis), (0, 1))
    time = torch.arange(moved.shape[1], device=x.device)
    lengths = lengths.reshape(-1, 1)
    source = torch.where(time < lengths, lengths - 1 - time, time)
    source = source.reshape(list(source.shape) + [1] * (moved.ndim - 2)).expand(moved.shape)
    return moved.gather(1, source).movedim((0, 1), (batch_axis, time_axis))


def given_or(given: Any, default: Tensor) -> Any:
    """An input that may be left out."""
    return default if given is None else given


def items_to(value: Any, dtype: torch.dtype) -> Any:
    """A sequence, or an optional, of tensors of another type."""
    if isinstance(value, Tensor) or value is None:
        return value if value is None else value.to(dtype)
    return [items_to(item, dtype) for item in value]
