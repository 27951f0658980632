"""FX rules of operators that move data without computing: views, slices, concatenations, constants."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir
import torch
from opgraft.ir.fx import ops_view as ops
from opgraft.ir.fx.call import Call, Outputs, Rule
from opgraft.ir.fx.values import DataType, FxValue, Scalar, known
from torch import fx

aten = torch.ops.aten
_TO_THE_END = (1 << 63) - 1
_FAR = (1 << 31) - 1
"""Exporters write the largest int32 or int64 for a bound beyond any size."""


def constant(call: Call) -> Outputs:
    """Copies of a body that is used several times share its constants."""
    given = call.attributes.get("value")
    if given is None:
        return literal(call, _number_tensor(call))
    tensor, literals = given.as_tensor(), call.scope.emission.literals
    if id(tensor) not in literals:
        literals[id(tensor)] = literal(call, tensor)
    return literals[id(tensor)]


def _number_tensor(call: Call) -> onnx_ir.TensorProtocol:
    for name, dtype in (("float", DataType.FLOAT), ("int", DataType.INT64)):
        for attribute in (call.attributes.get(f"value_{name}"), call.attributes.get(f"value_{name}s")):
            if attribute is not None:
                return onnx_ir.tensor(attribute.value, dtype=dtype)
    raise call.fail("a constant of this kind has no torch form")


def literal(call: Call, tensor: onnx_ir.TensorProtocol) -> FxValue:
    call.torch_type(tensor.dtype)
    return FxValue(
        call.builder.root,
        call.scope.widened(tensor.dtype),
        constant=tensor,
        name=call.source.outputs[0].name or "constant",
        sizes=tuple(d for d in tensor.shape if isinstance(d, int)),
        is_literal=True,
    )


def identity(call: Call) -> Outputs:
    return call.value(0)


def reshape(call: Call) -> Outputs:
    target, allow_zero = call.scalars(1), bool(call.int_attribute("allowzero", 0))
    if target is None:
        raise call.fail("input 1 is missing")
    if isinstance(target, fx.Node):
        return call.emit(ops.reshape, call.tensor(0), target, allow_zero)
    sizes = [call.size(0, i) if isinstance(s, int) and s == 0 and not allow_zero else s for i, s in enumerate(target)]
    return call.emit(aten.reshape.default, call.tensor(0), sizes)


def flatten(call: Call) -> Outputs:
    rank = call.known_rank()
    axis = call.int_attribute("axis", 1)
    if rank is None:
        return call.emit(ops.flatten, call.tensor(0), axis)
    axis = axis + rank if axis < 0 else axis
    builder = call.builder
    sizes = [call.size(0, i) for i in range(rank)]
    return call.emit(
        aten.reshape.default, call.tensor(0), [builder.product(sizes[:axis]), builder.product(sizes[axis:])]
    )


def transpose(call: Call) -> Outputs:
    order = call.ints_attribute("perm")
    if order is not None:
        return call.emit(aten.permute.default, call.tensor(0), order)
    rank = call.known_rank()
    if rank is None:
        return call.emit(ops.reverse_dims, call.tensor(0))
    return call.emit(aten.permute.default, call.tensor(0), list(range(rank))[::-1])


def squeeze(call: Call) -> Outputs:
    axes = call.scalars_of("axes", 1)
    if axes is None:
        return call.emit(aten.squeeze.default, call.tensor(0))
    if isinstance(axes, list) and len(axes) == 1:
        return call.emit(aten.squeeze.dim, call.tensor(0), axes[0])
    return call.emit(aten.squeeze.dims, call.tensor(0), axes)


def unsqueeze(call: Call) -> Outputs:
    axes = call.scalars_of("axes", 1)
    if isinstance(axes, list) and len(axes) == 1:
        return call.emit(aten.unsqueeze.default, call.tensor(0), axes[0])
    return call.emit(ops.unsqueeze, call.tensor(0), axes)


def expand(call: Call) -> Outputs:
    target, rank = call.scalars(1), call.known_rank()
    shape = call.value(0).sizes
    if isinstance(target, list) and rank is not None and shape is not None and len(target) >= rank:
        # 1 keeps the input's dim; another number is the result's dim.
        numbers: list[Scalar] = []
        for axis, size in enumerate(target):
            own = axis - len(target) + rank
            if not isinstance(size, int):
                break
            numbers.append(-1 if size == 1 and own >= 0 else size)
        if len(numbers) == len(target):
            return call.emit(aten.expand.default, call.tensor(0), numbers)
        if all(isinstance(s, int) and s == 1 for s in shape):
            return call.emit(aten.expand.default, call.tensor(0), target)
    return call.emit(ops.expand, call.tensor(0), target)


def tile(call: Call) -> Outputs:
    repeats = call.scalars(1)
    target = ops.tile if isinstance(repeats, fx.Node) else aten.repeat.default
    return call.emit(target, call.tensor(0), repeats)


def concat(call: Call) -> Outputs:
    parts = call.tensors()
    return call.emit(aten.cat.default, parts, call.int_attribute("axis", 1)) if len(parts) > 1 else call.value(0)


def split(call: Call) -> Outputs:
    axis, count = call.int_attribute("axis", 0), len(call.source.outputs)
    sizes = call.scalars_of("split", 1)
    x = call.tensor(0)
    if sizes is None:
        rank = call.known_rank()
        length = call.size(0, axis) if rank is not None else None
        if not isinstance(length, int):
            return call.outputs_of(call.emit(ops.split_evenly, x, axis, count), count)
        part = -(-length // count)
        sizes = [max(min(part, length - part * i), 0) for i in range(count)]
    return call.outputs_of(call.emit(aten.split_with_sizes.default, x, sizes, axis), count)


def slice_(call: Call) -> Outputs:
    starts, ends = call.scalars_of("starts", 1), call.scalars_of("ends", 2)
    axes, steps = call.scalars_of("axes", 3), call.scalars(4)
    if isinstance(starts, list):
        axes = list(range(len(starts))) if axes is None else axes
        steps = [1] * len(starts) if steps is None else steps
    if not (isinstance(starts, list) and isinstance(ends, list)) or known(axes) is None or known(steps) is None:
        return _slice_any(call, starts, ends, axes, steps)
    x = call.tensor(0)
    for start, end, axis, step in zip(starts, ends, known(axes) or [], known(steps) or [], strict=True):
        if step < 0:
            x = _slice_back(call, x, axis, start, end, step)
        elif (start, step) != (0, 1) or not (isinstance(end, int) and end >= _TO_THE_END):
            x = call.emit(aten.slice.Tensor, x, axis, start, end, step)
    return x


def _slice_back(call: Call, x: fx.Node, axis: int, start: Scalar, end: Scalar, step: int) -> fx.Node:
    """Backwards from the last element is a flip and a slice; from elsewhere the first position has to be found."""
    if not (isinstance(start, int) and isinstance(end, int) and (start == -1 or start >= _FAR)):
        return call.emit(ops.slice_back, x, axis, start, end, step)
    x = call.emit(aten.flip.default, x, [axis])
    # In the flipped order: up to the end, up to that far from the end, or this many.
    stop = None if end <= -_FAR else -(end + 1) if end >= 0 else -end - 1
    return x if stop is None and step == -1 else call.emit(aten.slice.Tensor, x, axis, 0, stop, -step)


def _slice_any(call: Call, *bounds: object) -> Outputs:
    """Bounds that depend on data."""
    starts, ends, axes, steps = bounds
    if axes is None or steps is None:
        count = call.value(1).sizes
        if count is None or not isinstance(count[0], int):
            raise call.fail("the number of axes of the slice is not known")
        axes = list(range(count[0])) if axes is None else axes
        steps = [1] * count[0] if steps is None else steps
    return call.emit(ops.slice_any, call.tensor(0), starts, ends, axes, steps)


def pad(call: Call) -> Outputs:
    mode = call.text_attribute("mode", "constant")
    pads = call.scalars_of("pads", 1)
    axes = call.scalars(3)
    value: object = call.float_attribute("value", 0.0)
    if call.has(2):
        number = call.array(2)
        value = call.tensor(2) if number is None else number.reshape(-1)[0].item()
    elif call.is_integer():
        value = 0
    return call.emit(ops.pad, call.tensor(0), pads, axes, mode, value)


def shape(call: Call) -> Outputs:
    end = call.int_attribute("end", 0) if "end" in call.attributes else None
    return call.emit(ops.shape_tensor, call.tensor(0), call.int_attribute("start", 0), end)


def size(call: Call) -> Outputs:
    count = call.emit(ops.element_count, call.tensor(0))
    return call.emit(aten.scalar_tensor.default, count, dtype=torch.int64, device=call.builder.device)


def constant_of_shape(call: Call) -> Outputs:
    value = call.attributes.get("value")
    tensor = value.as_tensor() if value is not None else onnx_ir.tensor([0.0], dtype=DataType.FLOAT)
    dtype = call.scope.widened(tensor.dtype)
    number, device = tensor.numpy().reshape(-1)[0].item(), call.builder.device
    made = call.emit(aten.full.default, call.scalars(0), number, dtype=call.torch_type(dtype), device=device)
    return call.result(made, dtype)


def range_(call: Call) -> Outputs:
    bounds: Sequence[object]
    if call.is_integer():
        bounds = [call.scalar(i) for i in range(3)]
    else:
        arrays = [call.array(i) for i in range(3)]
        bounds = [
            a.reshape(-1)[0].item() if a is not None else call.emit(aten.item.default, call.tensor(i))
            for i, a in enumerate(arrays)
        ]
    return call.emit(torch.arange, *bounds, dtype=call.torch_dtype(0), device=call.builder.device)


def depth_to_space(call: Call) -> Outputs:
    return call.emit(
        ops.depth_to_space,
        call.tensor(0),
        call.int_attribute("blocksize", 1),
        call.text_attribute("mode", "DCR") == "CRD",
    )


def space_to_depth(call: Call) -> Outputs:
    return call.emit(
        ops.space_to_depth,
        call.tensor(0),
        call.int_attribute("blocksize", 1),
        call.text_attribute("mode", "DCR") == "CRD",
    )


def center_crop_pad(call: Call) -> Outputs:
    axes = call.ints_attribute("axes") or list(range(call.rank()))
    return call.emit(ops.center_crop_pad, call.tensor(0), call.scalars(1), axes)


def reverse_sequence(call: Call) -> Outputs:
    return call.emit(
        ops.reverse_sequence,
        call.tensor(0),
        call.tensor(1),
        call.int_attribute("time_axis", 0),
        call.int_attribute("batch_axis", 1),
    )


def trilu(call: Call) -> Outputs:
    k = call.scalar(1) if call.has(1) else 0
    return call.emit(aten.triu.default if call.int_attribute("upper", 1) else aten.tril.default, call.tensor(0), k)


def eye_like(call: Call) -> Outputs:
    dtype = call.type_attribute("dtype") or call.dtype(0)
    rows, columns, k = call.size(0, 0), call.size(0, 1), call.int_attribute("k", 0)
    column = call.emit(torch.arange, columns, device=call.builder.device)
    row = call.emit(aten.unsqueeze.default, call.emit(torch.arange, rows, device=call.builder.device), 1)
    on_diagonal = call.emit(aten.eq.Tensor, column, call.emit(aten.add.Tensor, row, k))
    return call.result(call.emit(aten.to.dtype, on_diagonal, call.torch_type(dtype)), dtype)


VIEW_RULES: dict[str, Rule] = {
    "CenterCropPad": center_crop_pad,
    "Concat": concat,
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "EyeLike": eye_like,
    "Flatten": flatten,
    "Identity": identity,
    "Pad": pad,
    "Range": range_,
    "Reshape": reshape,
    "ReverseSequence": reverse_sequence,
    "Shape": shape,
    "Size": size,
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": trilu,
    "Unsqueeze": unsqueeze,
}
