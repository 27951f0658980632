"""Merge minima of minima and maxima of maxima."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir
from opgraft.ir.program import constant_array
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._extents import rank_of
from opgraft.passes.simplify._operands import producer


class FuseMinMax(NodePass):
    """Max(Max(x, a), b) -> Max(x, max(a, b)) for constants of one element; Min likewise

    The constant that decides is kept as it is, in its place: no arithmetic is done. Zeros of different sign are left,
    as the runtime's choice between them depends on their place.
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Max", "Min")

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        outer = split_bound(node)
        inner = producer(outer[0], node.graph, node.op_type) if outer is not None else None
        below = split_bound(inner) if inner is not None else None
        if outer is None or inner is None or below is None:
            return NoMatch("not two in a row with one constant each", node)
        if outer[1].dtype != below[1].dtype or outer[1] != outer[1] or below[1] != below[1]:
            return NoMatch("a bound is not a number", node)
        if outer[1] == below[1] == 0 and np.signbit(outer[1]) != np.signbit(below[1]):
            return NoMatch("zeros of different sign", node)
        keeps_inner = below[1] >= outer[1] if node.op_type == "Max" else below[1] <= outer[1]
        decisive = inner if keeps_inner else node
        bound = (below if keeps_inner else outer)[2]
        if rank_of(below[2]) != 0 or rank_of(outer[2]) != 0:
            return NoMatch("a bound has a rank of its own", node)
        value = below[0]
        operands = [value, bound] if decisive.inputs[1] is bound else [bound, value]
        return [op.op(node.op_type, operands)[0]]


def split_bound(node: onnx_ir.Node) -> tuple[onnx_ir.Value, Any, onnx_ir.Value] | None:
    """The operand, the number and the constant of a Max or Min of a value and a constant of one element."""
    if len(node.inputs) != 2:
        return None
    for index in (1, 0):
        bound, value = node.inputs[index], node.inputs[1 - index]
        array = constant_array(bound)
        if array is not None and array.size == 1 and value is not None and bound is not None:
            return value, array.reshape(-1)[0], bound
    return None
