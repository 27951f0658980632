"""Remove copies."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter, can_stand_for
from opgraft.passes._worklist import NodePass


class EliminateIdentity(NodePass):
    """Identity(x) -> x

    A graph output that is an input, an initializer or another output keeps its Identity: the runtime needs two names.
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Identity",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        value = node.inputs[0]
        if value is None:
            return NoMatch("the input is absent", node)
        refused = can_stand_for(value, node.outputs[0])
        return refused if refused is not None else [value]
