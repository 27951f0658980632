"""Large constants that are only moved: their new form is made when the program is written, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir
from opgraft.ir.integer_contents import Operands
from opgraft.ir.integer_rules import slice_of
from opgraft.ir.program import constant_tensor, is_op
from opgraft.ir.shapes import ShapeAnalysis
from opgraft.passes._weights import derive

# Below this the runtime computes it with everything else.
_MIN_BYTES = 1 << 18

Array: TypeAlias = npt.NDArray[Any]
_Step: TypeAlias = Callable[[Array], Array]


def move_lazily(
    value: onnx_ir.Value, nodes: Container[onnx_ir.Node], facts: ShapeAnalysis
) -> onnx_ir.TensorProtocol | None:
    """The tensor that `value` holds when nodes among `nodes` only transpose, reshape or slice a large constant."""
    steps: list[_Step] = []
    shape = _static(facts, value)
    current: onnx_ir.Value | None = value
    while current is not None and constant_tensor(current) is None:
        node = current.producer()
        step = _step(node, facts) if node is not None and node in nodes else None
        if node is None or step is None:
            return None
        steps.append(step)
        current = node.inputs[0]
    tensor = constant_tensor(current)
    if tensor is None or shape is None or not steps or tensor.nbytes < _MIN_BYTES:
        return None
    if tensor.dtype == onnx_ir.DataType.STRING:
        return None
    source = tensor

    def make() -> Array:
        array = source.numpy()
        for step in reversed(steps):
            array = step(array)
        return np.ascontiguousarray(array).reshape(shape)

    return derive(tensor.nbytes, tensor.dtype, shape, make)


def _step(node: onnx_ir.Node, facts: ShapeAnalysis) -> _Step | None:
    if is_op(node, "Transpose"):
        perm = node.attributes.get("perm")
        order = None if perm is None else list(perm.as_ints())
        return lambda array: array.transpose(order)
    if is_op(node, "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"):
        shape = _static(facts, node.outputs[0])
        return None if shape is None else lambda array: array.reshape(shape)
    if is_op(node, "Slice"):
        source = _static(facts, node.inputs[0])
        operands = Operands(node, [facts.integers(v) for v in node.inputs], [facts.sizes(v) for v in node.inputs])
        slices = None if source is None else slice_of(len(source), operands)
        if slices is None or any(s.step is not None and s.step < 0 for s in slices):
            return None
        parts = tuple(slices)
        return lambda array: array[parts]
    return None


def _static(facts: ShapeAnalysis, value: onnx_ir.Value | None) -> tuple[int, ...] | None:
    sizes = facts.sizes(value)
    if sizes is None or not all(isinstance(d, int) for d in sizes):
        return None
    return tuple(d for d in sizes if isinstance(d, int))
