"""Shapes of operators that move data without computing: views, slices, concatenations, lookups."""

from __future__ import annotations

from collections.abc import Sequence

from opgraft.ir.dims import Size, add_all, ceil_divide, floor_divide, maximum, minimum, multiply_all, never_negative
from opgraft.ir.integer_contents import Sizes
from opgraft.ir.integer_rules import split_sizes
from opgraft.ir.shape_rule import ShapeOperands, ShapeResult, ShapeRule, broadcast, same_at_run_time

# Exporters write "to the end" as the largest int32 or int64.
_TO_THE_END = (1 << 31) - 1


def reshape(operands: ShapeOperands) -> ShapeResult:
    """A symbolic target size is taken to be what it says; at zero, without allowzero, the runtime would copy the
    input's dim instead."""
    data, content = operands.shape(0), operands.content(1)
    if content is None:
        length = operands.shape(1)
        return _unknown(operands, length[0]) if length is not None and len(length) == 1 else None
    copies = not operands.int_attribute("allowzero", 0)
    result: list[Size] = []
    open_axis = None
    for index, element in enumerate(content.elements.reshape(-1).tolist()):
        if element is None:
            result.append(operands.unknowns.fresh())
        elif element == 0 and copies:
            known = data is not None and index < len(data)
            result.append(data[index] if known and data is not None else operands.unknowns.fresh())
        elif element == -1:
            open_axis = index
            result.append(1)
        else:
            result.append(element)
    if open_axis is not None:
        result[open_axis] = _remaining(data, result, operands)
    return tuple(result)


def _remaining(data: Sizes | None, others: Sequence[Size], operands: ShapeOperands) -> Size:
    """What -1 stands for: all elements divided by the other sizes, which divide them."""
    if data is None:
        return operands.unknowns.fresh()
    left, right = _cancel(data, others)
    divisor = multiply_all(right)
    # With allowzero, ONNX Runtime infers beside a 0 too, from the dims that are not 0.
    may_be_beside_zero = operands.int_attribute("allowzero", 0) and not operands.no_zeros
    if divisor == 0 or (not isinstance(divisor, int) and may_be_beside_zero):
        return operands.unknowns.fresh()
    return floor_divide(multiply_all(left), divisor)


def _cancel(left: Sequence[Size], right: Sequence[Size]) -> tuple[list[Size], list[Size]]:
    """Without the factors on both sides."""
    kept, rest = list(left), []
    for size in right:
        if size in kept:
            kept.remove(size)
        else:
            rest.append(size)
    return kept, rest


def _unknown(operands: ShapeOperands, rank: Size) -> Sizes | None:
    if not isinstance(rank, int) or not 0 <= rank <= 64:
        return None
    return tuple(operands.unknowns.fresh() for _ in range(rank))


def flatten(operands: ShapeOperands) -> ShapeResult:
    shape = operands.shape(0)
    if shape is None:
        return None
    axis = operands.int_attribute("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return multiply_all(shape[:axis]), multiply_all(shape[axis:])


def transpose(operands: ShapeOperands) -> ShapeResult:
    shape = operands.shape(0)
    if shape is None:
        return None
    order = operands.ints_attribute("perm")
    if order is None:
        return shape[::-1]
    return tuple(shape[p] for p in order) if sorted(order) == list(range(len(shape))) else None


def squeeze(operands: ShapeOperands) -> ShapeResult:
    shape, axes = operands.shape(0), operands.ints("axes", 1)
    if shape is None or (axes is None and operands.is_present(1)):
        return None
    if axes is None:
        return tuple(d for d in shape if d != 1) if all(isinstance(d, int) for d in shape) else None
    gone = {a % len(shape) for a in axes} if shape else set()
    return tuple(d for i, d in enumerate(shape) if i not in gone)


def unsqueeze(operands: ShapeOperands) -> ShapeResult:
    shape, axes = operands.shape(0), operands.ints("axes", 1)
    if shape is None or axes is None:
        return None
    rank = len(shape) + len(axes)
    ones = {a % rank for a in axes}
    if len(ones) != len(axes):
        return None
    rest = iter(shape)
    return tuple(1 if i in ones else next(rest) for i in range(rank))


def concat(operands: ShapeOperands) -> ShapeResult:
    shapes = [s for s in operands.shapes if s is not None]
    if len(shapes) != len(operands.node.inputs) or not shapes or len({len(s) for s in shapes}) != 1:
        return None
    axis = operands.axis(len(shapes[0]))
    if axis is None:
        return None
    return tuple(
        add_all(dims) if i == axis else same_at_run_time(dims) for i, dims in enumerate(zip(*shapes, strict=True))
    )


def split(operands: ShapeOperands) -> ShapeResult:
    shape = operands.shape(0)
    axis = operands.axis(len(shape)) if shape is not None else None
    if shape is None or axis is None:
        return None
    n_outputs = len(operands.node.outputs)
    length = shape[axis]
    sizes: Sequence[Size] | None = operands.ints("split", 1)
    if sizes is None and not operands.is_present(1):
        if isinstance(length, int):
            sizes = split_sizes(operands, length)
        elif operands.int_attribute("num_outputs", 0) == 0:
            sizes = [floor_divide(length, n_outputs)] * n_outputs  # older versions require equal parts
    if sizes is None or len(sizes) != n_outputs:
        sizes = [operands.unknowns.fresh() for _ in range(n_outputs)]
    return [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]


def slice_(operands: ShapeOperands) -> ShapeResult:
    shape = operands.shape(0)
    if shape is None:
        return None
    starts, ends = _bounds(operands, "starts", 1), _bounds(operands, "ends", 2)
    axes, steps = operands.ints("axes", 3), operands.ints("steps", 4)
    if (axes is None and operands.is_present(3)) or (starts is None and ends is None and axes is None):
        return tuple(operands.unknowns.fresh() for _ in shape)
    n_axes = len(axes if axes is not None else starts if starts is not None else ends or ())
    axes = list(range(n_axes)) if axes is None else axes
    result = list(shape)
    for index, axis in enumerate(axes):
        if not -len(shape) <= axis < len(shape):
            return None
        step = 1 if not operands.is_present(4) else steps[index] if steps is not None and index < len(steps) else None
        known = starts is not None and ends is not None and index < min(len(starts), len(ends)) and step is not None
        result[axis % len(shape)] = (
            _slice_length(shape[axis], starts[index], ends[index], step, operands)
            if known and starts is not None and ends is not None and step is not None
            else operands.unknowns.fresh()
        )
    return tuple(result)


def _bounds(operands: ShapeOperands, name: str, index: int) -> Sequence[Size] | None:
    attribute = operands.ints_attribute(name)
    return attribute if attribute is not None else operands.sizes(index)


def _slice_length(length: Size, start: Size, end: Size, step: int, operands: ShapeOperands) -> Size:
    if isinstance(length, int) and isinstance(start, int) and isinstance(end, int):
        if step < 0 and start < -length:
            start = -length
        return len(range(length)[start:end:step]) if step else operands.unknowns.fresh()
    if step < 1:
        return operands.unknowns.fresh()
    first, last = _clamped(start, length), _clamped(end, length)
    if operands.no_zeros and step == 1:
        # Something is taken: the first position is inside, and the last is behind it.
        first = start if never_negative(start) else first
        last = length + end if isinstance(end, int) and end < 0 else last
    if first is None or last is None:
        return operands.unknowns.of("slice", length, start, end, step)
    count = last - first
    is_positive = operands.no_zeros and step == 1
    if not is_positive and not never_negative(count):
        count = maximum(count, 0)
    return count if step == 1 else ceil_divide(count, step)


def _clamped(bound: Size, length: Size) -> Size | None:
    """A bound of a slice as a position from 0 to `length`; None where its sign is not known."""
    if bound == length or (isinstance(bound, int) and bound >= _TO_THE_END):
        return length
    if isinstance(bound, int) and bound < 0:
        return maximum(length + bound, 0)
    if never_negative(bound):
        return minimum(bound, length)
    return None


def gather(operands: ShapeOperands) -> ShapeResult:
    data, indices = operands.shape(0), operands.shape(1)
    axis = operands.axis(len(data)) if data is not None else None
    if data is None or indices is None or axis is None:
        return None
    return (*data[:axis], *indices, *data[axis + 1 :])


def gather_nd(operands: ShapeOperands) -> ShapeResult:
    data, indices = operands.shape(0), operands.shape(1)
    if data is None or not indices or not isinstance(indices[-1], int):
        return None
    return (*indices[:-1], *data[operands.int_attribute("batch_dims", 0) + indices[-1] :])


def expand(operands: ShapeOperands) -> ShapeResult:
    data, target = operands.shape(0), operands.sizes(1)
    if data is None or target is None:
        length = operands.shape(1)
        if data is None or length is None or len(length) != 1 or not isinstance(length[0], int):
            return None
        target = list(_unknown(operands, length[0]) or ())
    return broadcast([data, tuple(target)], operands.unknowns)


def tile(operands: ShapeOperands) -> ShapeResult:
    shape, repeats = operands.shape(0), operands.sizes(1)
    if shape is None:
        return None
    if repeats is None or len(repeats) != len(shape):
        return tuple(operands.unknowns.fresh() for _ in shape)
    return tuple(d * r for d, r in zip(shape, repeats, strict=True))


def pad(operands: ShapeOperands) -> ShapeResult:
    shape = operands.shape(0)
    if shape is None:
        return None
    attribute = operands.ints_attribute("pads")
    pads: Sequence[Size] | None = attribute if attribute is not None else operands.sizes(1)
    axes = operands.numbers(3) if operands.is_present(3) else list(range(len(shape)))
    if pads is None or axes is None or len(pads) != 2 * len(axes):
        return tuple(operands.unknowns.fresh() for _ in shape)
    result = list(shape)
    for index, axis in enumerate(axes):
        result[axis] = result[axis] + pads[index] + pads[index + len(axes)]
    return tuple(result)


def constant_of_shape(operands: ShapeOperands) -> ShapeResult:
    sizes = operands.sizes(0)
    if sizes is not None:
        return tuple(sizes)
    length = operands.shape(0)
    return _unknown(operands, length[0]) if length is not None and len(length) == 1 else None


def range_(operands: ShapeOperands) -> ShapeResult:
    bounds = [operands.sizes(i) for i in range(3)]
    if any(b is None or len(b) != 1 for b in bounds):
        return (operands.unknowns.fresh(),)
    start, limit, step = (b[0] for b in bounds if b is not None)
    if not isinstance(step, int) or step == 0:
        return (operands.unknowns.fresh(),)
    distance = limit - start if step > 0 else start - limit
    return (maximum(ceil_divide(distance, abs(step)), 0),)


def one_hot(operands: ShapeOperands) -> ShapeResult:
    indices, depth = operands.shape(0), operands.sizes(1)
    if indices is None:
        return None
    axis = operands.int_attribute("axis", -1)
    axis = axis + len(indices) + 1 if axis < 0 else axis
    size = depth[0] if depth is not None and len(depth) == 1 else operands.unknowns.fresh()
    return (*indices[:axis], size, *indices[axis:])


def top_k(operands: ShapeOperands) -> ShapeResult:
    shape = operands.shape(0)
    axis = operands.axis(len(shape), -1) if shape is not None else None
    if shape is None or axis is None:
        return None
    count = operands.sizes(1)
    size = count[0] if count is not None and len(count) == 1 else operands.unknowns.fresh()
    return [(*shape[:axis], size, *shape[axis + 1 :])] * 2


def depth_to_space(operands: ShapeOperands) -> ShapeResult:
    shape, block = operands.shape(0), operands.int_attribute("blocksize", 1)
    if shape is None or len(shape) != 4:
        return None
    return shape[0], floor_divide(shape[1], block * block), shape[2] * block, shape[3] * block


def space_to_depth(operands: ShapeOperands) -> ShapeResult:
    shape, block = operands.shape(0), operands.int_attribute("blocksize", 1)
    if shape is None or len(shape) != 4:
        return None
    return shape[0], shape[1] * block * block, floor_divide(shape[2], block), floor_divide(shape[3], block)


def non_zero(operands: ShapeOperands) -> ShapeResult:
    shape = operands.shape(0)
    return None if shape is None else (len(shape), operands.unknowns.fresh())


def shape_of(operands: ShapeOperands) -> ShapeResult:
    shape = operands.shape(0)
    if shape is None:
        return (operands.unknowns.fresh(),)
    end = operands.node.attributes.get("end")
    return (len(shape[operands.int_attribute("start", 0) : end.as_int() if end is not None else None]),)


VIEW_RULES: dict[str, ShapeRule] = {
    "Reshape": reshape,
    "Flatten": flatten,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "GatherND": gather_nd,
    "GatherElements": lambda operands: operands.shape(1),
    "Expand": expand,
    "Tile": tile,
    "Pad": pad,
    "ConstantOfShape": constant_of_shape,
    "Range": range_,
    "OneHot": one_hot,
    "TopK": top_k,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "NonZero": non_zero,
    "Shape": shape_of,
    "Size": lambda operands: (),
}
