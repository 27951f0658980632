"""Remove broadcasting to the shape that a value has."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.ir.program import constant_ints
from opgraft.passes._pass import NoMatch, PassContext
from opgraft.passes.simplify._extents import extents, have_same_shape, is_absorbed
from opgraft.passes.simplify._nop import NopPass
from opgraft.passes.simplify._operands import operand, producer


class EliminateNopExpand(NopPass):
    """Expand(x, shape) -> x

    1. every dim of a constant shape is 1 or the dim of x
    2. the shape is Shape(x)
    3. the shape is computed, and the output is known to have the shape of x
    """

    roots: ClassVar[tuple[str, ...]] = ("Expand",)

    def source(self, node: onnx_ir.Node, context: PassContext) -> onnx_ir.Value | NoMatch:
        value, shape = node.inputs[0], operand(node, 1)
        if value is None or shape is None:
            return NoMatch("an input is absent", node)
        target = constant_ints(shape)
        if target is not None and is_absorbed(target, extents(value)):  # 1
            return value
        measured = producer(shape, None, "Shape")
        if measured is not None and measured.inputs[0] is value and not measured.attributes:  # 2
            return value
        if target is None and have_same_shape(value, node.outputs[0]):  # 3
            return value
        return NoMatch("the shape may differ from the input's", node)
