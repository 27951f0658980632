"""Divide instead of multiplying by a reciprocal."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.ir.program import constant_array
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._extents import extents, is_absorbed
from opgraft.passes.simplify._operands import is_single_use, producer


class FuseDivMul(NodePass):
    """Mul(Div(1, x), y) -> Div(y, x); Mul(Reciprocal(x), y) -> Div(y, x)

    Rounds once instead of twice. Floats only: for integers 1 / x is 0 almost everywhere.
    """

    contract: ClassVar[Contract] = Contract.NUMERIC
    roots: ClassVar[tuple[str, ...]] = ("Mul",)
    partners: ClassVar[tuple[str, ...]] = ("Div", "Reciprocal")

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        for index in (0, 1):
            inner = producer(node.inputs[index], node.graph, "Div", "Reciprocal")
            if inner is None or not is_single_use(inner.outputs[0]):
                continue
            divisor = _inverted(inner)
            if divisor is not None:
                return [op.Div(node.inputs[1 - index], divisor)]
        return NoMatch("no operand is a reciprocal with no other user", node)


def _inverted(node: onnx_ir.Node) -> onnx_ir.Value | None:
    """The x of 1 / x; None when it is an integer or the 1 could widen it."""
    if node.op_type == "Reciprocal":
        return node.inputs[0]
    one, divisor = constant_array(node.inputs[0]), node.inputs[1]
    if one is None or divisor is None or divisor.dtype is None or not divisor.dtype.is_floating_point():
        return None
    if not one.size or not (one == 1).all() or not is_absorbed(list(one.shape), extents(divisor)):
        return None
    return divisor
