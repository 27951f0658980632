"""Merge slices of slices."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._extents import Extent, extents
from opgraft.passes.simplify._operands import opset_of, producer
from opgraft.passes.simplify._ranges import BEFORE_FIRST, END, AxisSlice, read_slices


class ComposeSlices(NodePass):
    """Slice(Slice(x, ...), ...) -> Slice(x, ...)

    1. of other axes: both lists together
    2. of the same axis, whose dim is known: the indices are computed
    3. of the same axis, of any size: bounds from the front, the inner step 1
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Slice",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        inner = producer(node.inputs[0], node.graph, "Slice")
        value = inner.inputs[0] if inner is not None else None
        if inner is None or value is None:
            return NoMatch("the operand is not a slice", node)
        first, second = read_slices(inner), read_slices(node)
        if first is None or second is None:
            return NoMatch("the bounds are not constant", node)
        dims = extents(value)
        merged = _merge(first, second, dims)
        if merged is None:
            return NoMatch("two slices of an axis cannot be written as one", node)
        return [write_slice(op, value, merged, opset_of(node, context))]


def _merge(first: list[AxisSlice], second: list[AxisSlice], dims: list[Extent] | None) -> list[AxisSlice] | None:
    parts: dict[int, AxisSlice] = {}
    for part in (*first, *second):
        axis = part.axis
        if axis < 0:
            if dims is None or axis + len(dims) < 0:
                return None
            axis += len(dims)
        size = dims[axis] if dims is not None and axis < len(dims) else None
        earlier = parts.get(axis)
        if earlier is None:
            parts[axis] = AxisSlice(axis, part.start, part.end, part.step)
            continue
        both = _compose(earlier, part, size if isinstance(size, int) else None)
        if both is None:
            return None
        parts[axis] = both
    return list(parts.values())


def _compose(first: AxisSlice, second: AxisSlice, size: int | None) -> AxisSlice | None:
    axis = first.axis
    if size is not None:  # 2
        taken = first.range_of(size)[slice(second.start, second.end, second.step)]
        if not taken:
            return AxisSlice(axis, 0, 0)
        end = taken.stop if taken.stop >= 0 else BEFORE_FIRST
        return AxisSlice(axis, taken.start, end, taken.step)
    if first.step != 1 or second.step < 1 or min(first.start, first.end, second.start, second.end) < 0:
        return None
    start, end = min(first.start + second.start, END), min(first.end, first.start + second.end, END)
    return AxisSlice(axis, start, end, second.step)  # 3


def write_slice(op: Rewriter, value: onnx_ir.Value, parts: list[AxisSlice], opset: int) -> onnx_ir.Value:
    """A Slice in the form that `opset` takes."""
    columns = [[p.start for p in parts], [p.end for p in parts], [p.axis for p in parts]]
    if opset < 10:
        starts, ends, axes = columns
        return op.op("Slice", [value], starts=starts, ends=ends, axes=axes)[0]
    names = ["starts", "ends", "axes"]
    if any(p.step != 1 for p in parts):
        columns.append([p.step for p in parts])
        names.append("steps")
    operands = [op.constant(np.array(c, dtype=np.int64), n) for c, n in zip(columns, names, strict=True)]
    return op.op("Slice", [value, *operands])[0]
