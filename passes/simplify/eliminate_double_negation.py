"""Remove an involution applied twice."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.passes._pass import NoMatch, PassContext
from opgraft.passes.simplify._nop import NopPass
from opgraft.passes.simplify._operands import producer


class EliminateDoubleNegation(NopPass):
    """Not(Not(x)), Neg(Neg(x)), BitwiseNot(BitwiseNot(x)) -> x

    Reciprocal is none of these: 1 / (1 / x) rounds twice.
    """

    roots: ClassVar[tuple[str, ...]] = ("Not", "Neg", "BitwiseNot")

    def source(self, node: onnx_ir.Node, context: PassContext) -> onnx_ir.Value | NoMatch:
        inner = producer(node.inputs[0], node.graph, node.op_type)
        value = inner.inputs[0] if inner is not None else None
        return value if value is not None else NoMatch("the operand is not negated", node)
