"""Merge unsqueezes, and undo what was just squeezed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter, can_stand_for
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._extents import rank_of
from opgraft.passes.simplify._operands import axes_form, ints_operand, normalize_axes, producer
from opgraft.passes.simplify.compose_squeezes import outer_axes


@dataclass(frozen=True)
class ComposeUnsqueezes(NodePass):
    """Unsqueeze(Unsqueeze(x, a), b) -> Unsqueeze(x, a + b)

    2. Unsqueeze(Squeeze(x, a), a) -> x
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Unsqueeze",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        inner = producer(node.inputs[0], node.graph, "Squeeze", "Unsqueeze")
        value = inner.inputs[0] if inner is not None else None
        if inner is None or value is None:
            return NoMatch("the operand is not squeezed or unsqueezed", node)
        first, second = ints_operand(inner, "axes", 1), ints_operand(node, "axes", 1)
        if first is None or second is None:
            return NoMatch("the axes are not known", node)
        rank = rank_of(value)
        if inner.op_type == "Squeeze":
            removed = normalize_axes(first, rank)
            added = normalize_axes(second, rank - len(first) + len(second) if rank is not None else None)
            if removed is None or added is None or sorted(removed) != sorted(added):
                return NoMatch("other axes are added than were squeezed", node)
            refused = can_stand_for(value, node.outputs[0])
            return refused if refused is not None else [value]
        before = normalize_axes(first, rank + len(first) if rank is not None else None)
        after = normalize_axes(second, rank + len(first) + len(second) if rank is not None else None)
        if before is None or after is None:
            return NoMatch("an axis counts from the back and the rank is not known", node)
        axes = sorted([*after, *outer_axes(before, after)])
        extra, attributes = axes_form(op, node, context, axes, since=13)
        return [op.Unsqueeze(value, *extra, **attributes)]
