"""Select by the condition itself."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._operands import producer


class EliminateWhereNot(NodePass):
    """Where(Not(c), a, b) -> Where(c, b, a)

    The runtime's Where gives a selected -0.0 the sign of its place, first or second.
    """

    contract: ClassVar[Contract] = Contract.NUMERIC
    roots: ClassVar[tuple[str, ...]] = ("Where",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        inner = producer(node.inputs[0], node.graph, "Not")
        if inner is None:
            return NoMatch("the condition is not negated", node)
        return [op.Where(inner.inputs[0], node.inputs[2], node.inputs[1])]
