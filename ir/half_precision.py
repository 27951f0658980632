"""Where rounding to half precision may be skipped.

ONNX Runtime has no kernels for half precision for many operators: it computes them in float32 between casts of its own,
and between two such nodes the casts cancel, and the rounding with them. A node in between that only moves numbers, for
which there is a kernel, keeps the rounding; whatever removes it may change the last bits of what comes later.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir
from opgraft.ir.program import Program, is_op

HALF = (onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16)
MOVERS = (
    *("Abs", "Concat", "ConstantOfShape", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity"),
    *("Neg", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
)
"""Operators that compute nothing and have kernels for half precision."""


def has_half(program: Program) -> bool:
    """Whether half precision occurs anywhere, as far as types are recorded or written in attributes."""
    for graph in program.scopes():
        values = (*graph.inputs, *graph.initializers.values(), *graph.outputs)
        if any(value.dtype in HALF for value in values):
            return True
        for node in graph:
            if any(output.dtype in HALF for output in node.outputs):
                return True
            if node.attributes and any(dtype in HALF for dtype in _types_in(node)):
                return True
    return False


def _types_in(node: onnx_ir.Node) -> Iterator[int]:
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == onnx_ir.AttributeType.TENSOR:
            yield attribute.as_tensor().dtype
        elif attribute.type == onnx_ir.AttributeType.INT and attribute.name in ("to", "dtype", "output_dtype"):
            yield attribute.as_int()


def may_be_unrounded(value: onnx_ir.Value | None) -> bool:
    """Whether `value`, of half precision or of a type that is not recorded, may reach its users with more."""
    if value is None or (value.dtype is not None and value.dtype not in HALF):
        return False
    producer = value.producer()
    return producer is not None and not is_op(producer, *MOVERS)
