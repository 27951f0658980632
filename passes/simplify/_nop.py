"""The shared form of passes that remove a node which computes its own input."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import onnx_ir
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter, can_stand_for
from opgraft.passes._worklist import NodePass


class NopPass(NodePass):
    """f(x) -> x, where `source` finds the x that the first output equals, or says why there is none."""

    contract: ClassVar[Contract] = Contract.EXACT

    @abstractmethod
    def source(self, node: onnx_ir.Node, context: PassContext) -> onnx_ir.Value | NoMatch: ...

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        value = self.source(node, context)
        if isinstance(value, NoMatch):
            return value
        for other in node.outputs[1:]:
            if other.uses() or other.is_graph_output():
                return NoMatch("another output is used", other)
        refused = can_stand_for(value, node.outputs[0])
        return refused if refused is not None else [value]
