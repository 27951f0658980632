"""FX rules of lookups, scatters and selections."""

from __future__ import annotations

import torch
from opgraft.ir.fx import ops_index as ops
from opgraft.ir.fx.call import Call, Outputs, Rule
from opgraft.ir.fx.values import DataType

aten = torch.ops.aten


def gather(call: Call) -> Outputs:
    """One row is a select; more are an index, which takes negative positions as ONNX does."""
    axis, rank = call.int_attribute("axis", 0), call.known_rank()
    index_rank = call.known_rank(1)
    if index_rank == 0:
        elements = call.builder.elements(call.value(1))
        if elements is not None and rank is not None:
            return call.emit(aten.select.int, call.tensor(0), axis, elements.reshape(-1)[0])
    if axis < 0 and rank is not None:
        axis += rank
    if axis < 0 or call.dtype(1) != DataType.INT64:
        return call.emit(ops.gather, call.tensor(0), call.tensor(1), axis)
    return call.emit(aten.index.Tensor, call.tensor(0), [None] * axis + [call.tensor(1)])


def gather_elements(call: Call) -> Outputs:
    return call.emit(ops.gather_elements, call.tensor(0), call.tensor(1), call.int_attribute("axis", 0))


def gather_nd(call: Call) -> Outputs:
    return call.emit(ops.gather_nd, call.tensor(0), call.tensor(1), call.int_attribute("batch_dims", 0))


def scatter_elements(call: Call) -> Outputs:
    tensors = [call.tensor(i) for i in range(3)]
    return call.emit(
        ops.scatter_elements, *tensors, call.int_attribute("axis", 0), call.text_attribute("reduction", "none")
    )


def scatter_nd(call: Call) -> Outputs:
    return call.emit(ops.scatter_nd, *(call.tensor(i) for i in range(3)), call.text_attribute("reduction", "none"))


def tensor_scatter(call: Call) -> Outputs:
    is_circular = call.text_attribute("mode", "linear") == "circular"
    tensors = [call.tensor(0), call.tensor(1), call.optional(2)]
    return call.emit(ops.tensor_scatter, *tensors, call.int_attribute("axis", -2), is_circular)


def one_hot(call: Call) -> Outputs:
    depth = call.scalar(1) if call.is_integer(1) else None
    if depth is None:
        number = call.array(1)
        depth = int(number.reshape(-1)[0]) if number is not None else call.emit(int, call.tensor(1))
    made = call.emit(ops.one_hot, call.tensor(0), depth, call.tensor(2), call.int_attribute("axis", -1))
    return call.result(made, call.dtype(2))


def compress(call: Call) -> Outputs:
    axis = call.int_attribute("axis", 0) if "axis" in call.attributes else None
    return call.emit(ops.compress, call.tensor(0), call.tensor(1), axis)


def non_zero(call: Call) -> Outputs:
    return call.emit(ops.non_zero, call.tensor(0))


def unique(call: Call) -> Outputs:
    axis = call.int_attribute("axis", 0) if "axis" in call.attributes else None
    made = call.emit(ops.unique, call.tensor(0), axis, bool(call.int_attribute("sorted", 1)))
    return call.outputs_of(made, 4)


def max_unpool(call: Call) -> Outputs:
    """The indices are those of a pool's input of natural size; a larger output has zeros behind it."""
    kernel, builder = call.ints_attribute("kernel_shape") or [], call.builder
    strides = call.ints_attribute("strides") or [1] * len(kernel)
    pads = call.ints_attribute("pads") or [0] * (2 * len(kernel))
    shape = [call.size(0, 0), call.size(0, 1)]
    for i in range(len(kernel)):
        length = builder.multiply(builder.subtract(call.size(0, 2 + i), 1), strides[i])
        shape.append(builder.add(length, kernel[i] - pads[i] - pads[i + len(kernel)]))
    return call.emit(ops.max_unpool, call.tensor(0), call.tensor(1), shape, call.scalars(2))


INDEX_RULES: dict[str, Rule] = {
    "Compress": compress,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "MaxUnpool": max_unpool,
    "NonZero": non_zero,
    "OneHot": one_hot,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TensorScatter": tensor_scatter,
    "Unique": unique,
}
