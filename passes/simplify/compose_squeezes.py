"""Merge squeezes, and undo what was just unsqueezed."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter, can_stand_for
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._operands import axes_form
from opgraft.passes.simplify._stacked_axes import inner_axes, outer_axes, stacked_axes


class ComposeSqueezes(NodePass):
    """Squeeze(Squeeze(x, a), b) -> Squeeze(x, a + b)

    2. Squeeze(Unsqueeze(x, a), b) -> x, or the one that remains when all axes of one are among the other's
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Squeeze",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        found = stacked_axes(node)
        if isinstance(found, NoMatch):
            return found
        if found.inner_op == "Unsqueeze":
            return _cancel(node, found.value, sorted(found.inner), sorted(found.outer), op, context)
        axes = sorted([*found.inner, *outer_axes(found.outer, found.inner)])
        extra, attributes = axes_form(op, node, context, axes, since=13)
        return [op.Squeeze(found.value, *extra, **attributes)]


def _cancel(
    node: onnx_ir.Node,
    value: onnx_ir.Value,
    added: list[int],
    removed: list[int],
    op: Rewriter,
    context: PassContext,
) -> Replacement | NoMatch:
    if added == removed:
        refused = can_stand_for(value, node.outputs[0])
        return refused if refused is not None else [value]
    if set(added) <= set(removed):
        rest = inner_axes([a for a in removed if a not in added], added)
        extra, attributes = axes_form(op, node, context, rest, since=13)
        return [op.Squeeze(value, *extra, **attributes)]
    if set(removed) <= set(added):
        rest = inner_axes([a for a in added if a not in removed], removed)
        extra, attributes = axes_form(op, node, context, rest, since=13)
        return [op.Unsqueeze(value, *extra, **attributes)]
    return NoMatch("other axes are squeezed than were added", node)
