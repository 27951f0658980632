"""Flatten nested concatenations."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._extents import rank_of
from opgraft.passes.simplify._operands import int_attribute, is_single_use, producer


class ComposeConcats(NodePass):
    """Concat(a, Concat(b, c), d) -> Concat(a, b, c, d) along the same axis

    Only inner results without another user: these would be copied once more.
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Concat",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        axis = int_attribute(node, "axis")
        if axis is None:
            return NoMatch("the axis is not known", node)
        operands: list[onnx_ir.Value | None] = []
        for value in node.inputs:
            inner = producer(value, node.graph, "Concat")
            same = inner is not None and value is not None and is_single_use(value) and _is_axis(inner, axis, node)
            operands += inner.inputs if inner is not None and same else [value]
        if len(operands) == len(node.inputs):
            return NoMatch("no operand is a concatenation along this axis with no other user", node)
        return [op.Concat(*operands, axis=axis)]


def _is_axis(inner: onnx_ir.Node, axis: int, node: onnx_ir.Node) -> bool:
    other = int_attribute(inner, "axis")
    if other == axis:
        return True
    values = [*inner.inputs, *inner.outputs, *node.inputs, *node.outputs]
    rank = next((r for r in map(rank_of, values) if r is not None), None)
    return other is not None and rank is not None and other % rank == axis % rank
