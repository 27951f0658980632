"""Remove the addition of zero."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.ir.program import constant_array
from opgraft.passes._pass import Contract, NoMatch, PassContext
from opgraft.passes.simplify._extents import extents, is_absorbed
from opgraft.passes.simplify._nop import NopPass
from opgraft.passes.simplify._operands import operand


class EliminateAddZero(NopPass):
    """x + 0.0, x - (-0.0) -> x

    The same number in another bit: x = -0.0 gives 0.0 before and -0.0 after.
    """

    contract: ClassVar[Contract] = Contract.NUMERIC
    roots: ClassVar[tuple[str, ...]] = ("Add", "Sub")

    def source(self, node: onnx_ir.Node, context: PassContext) -> onnx_ir.Value | NoMatch:
        for position in (1, 0) if node.op_type == "Add" else (1,):
            constant = constant_array(operand(node, position))
            # The first element tells of most constants, in a tenth of the time.
            if constant is None or not constant.size or constant.item(0) != 0 or constant.any():
                continue
            value = operand(node, 1 - position)
            if value is None:
                continue
            if not is_absorbed(list(constant.shape), extents(value)):
                return NoMatch("the zero may widen the other operand", node)
            return value
        return NoMatch("no operand is a constant zero", node)
