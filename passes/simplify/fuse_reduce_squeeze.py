"""Let a reduction drop the axes that are removed afterwards."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify.fuse_reduce_unsqueeze import change_keepdims


class FuseReduceSqueeze(NodePass):
    """Squeeze(Reduce(x, axes, keepdims=1), axes) -> Reduce(x, axes, keepdims=0)"""

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Squeeze",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        return change_keepdims(node, op, keeps=1)
