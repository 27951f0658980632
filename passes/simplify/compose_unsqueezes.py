"""Merge unsqueezes, and undo what was just squeezed."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter, can_stand_for
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._operands import axes_form
from opgraft.passes.simplify._stacked_axes import outer_axes, stacked_axes


class ComposeUnsqueezes(NodePass):
    """Unsqueeze(Unsqueeze(x, a), b) -> Unsqueeze(x, a + b)

    2. Unsqueeze(Squeeze(x, a), a) -> x
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Unsqueeze",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        found = stacked_axes(node)
        if isinstance(found, NoMatch):
            return found
        if found.inner_op == "Squeeze":
            if sorted(found.inner) != sorted(found.outer):
                return NoMatch("other axes are added than were squeezed", node)
            refused = can_stand_for(found.value, node.outputs[0])
            return refused if refused is not None else [found.value]
        axes = sorted([*found.outer, *outer_axes(found.inner, found.outer)])
        extra, attributes = axes_form(op, node, context, axes, since=13)
        return [op.Unsqueeze(found.value, *extra, **attributes)]
