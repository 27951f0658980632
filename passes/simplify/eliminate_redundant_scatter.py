"""Remove scatters that overwrite everything."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir
from opgraft.ir.program import constant_array, constant_ints
from opgraft.passes._pass import NoMatch, PassContext
from opgraft.passes.simplify._extents import extents
from opgraft.passes.simplify._nop import NopPass
from opgraft.passes.simplify._operands import int_attribute, ints_operand, operand, producer, string_attribute


class EliminateRedundantScatter(NopPass):
    """ScatterND(data, ((0,), (1,), ..., (n - 1,)), updates) -> updates

    1. constant indices that cover the first axis in order
    2. Unsqueeze(Range(0, n, 1), 1), where n is the first dim of data measured by Shape and Gather
    """

    roots: ClassVar[tuple[str, ...]] = ("ScatterND",)

    def source(self, node: onnx_ir.Node, context: PassContext) -> onnx_ir.Value | NoMatch:
        data, indices, updates = node.inputs[0], operand(node, 1), operand(node, 2)
        if data is None or indices is None or updates is None:
            return NoMatch("an input is absent", node)
        if string_attribute(node, "reduction", "none") != "none":
            return NoMatch("it combines with the data", node)
        rows = constant_array(indices)
        if rows is not None:  # 1
            dims = extents(data)
            covers = rows.ndim == 2 and rows.shape[1] == 1 and dims is not None and dims[:1] == [rows.shape[0]]
            if covers and np.array_equal(rows[:, 0], np.arange(rows.shape[0])):
                return updates
        elif _counts_rows(indices, data):  # 2
            return updates
        return NoMatch("the indices may not cover the first axis in order", node)


def _counts_rows(indices: onnx_ir.Value, data: onnx_ir.Value) -> bool:
    column = producer(indices, None, "Unsqueeze")
    if column is None or ints_operand(column, "axes", 1) not in ([-1], [1]):
        return False
    counter = producer(column.inputs[0], None, "Range")
    if counter is None or constant_ints(counter.inputs[0]) != [0] or constant_ints(counter.inputs[2]) != [1]:
        return False
    gather = producer(counter.inputs[1], None, "Gather")
    measured = producer(gather.inputs[0], None, "Shape") if gather is not None else None
    if gather is None or measured is None or int_attribute(measured, "start", 0) != 0 or "end" in measured.attributes:
        return False
    position, tensor = constant_array(operand(gather, 1)), measured.inputs[0]
    if position is None or position.ndim or int_attribute(gather, "axis", 0) != 0 or tensor is None:
        return False
    axis, dims, rows = int(position), extents(tensor), extents(data)
    if tensor is data and axis == 0:
        return True
    if dims is None or not rows or not -len(dims) <= axis < len(dims):
        return False
    return dims[axis] is not None and dims[axis] == rows[0]
