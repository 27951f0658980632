"""Merge squeezes, and undo what was just unsqueezed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter, can_stand_for
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._extents import rank_of
from opgraft.passes.simplify._operands import axes_form, ints_operand, normalize_axes, producer


@dataclass(frozen=True)
class ComposeSqueezes(NodePass):
    """Squeeze(Squeeze(x, a), b) -> Squeeze(x, a + b)

    2. Squeeze(Unsqueeze(x, a), b) -> x, or the one that remains when all axes of one are among the other's
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Squeeze",)

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
            before = normalize_axes(first, rank)
            after = normalize_axes(second, rank - len(first) if rank is not None else None)
            if before is None or after is None:
                return NoMatch("an axis counts from the back and the rank is not known", node)
            axes = sorted([*before, *outer_axes(after, before)])
            extra, attributes = axes_form(op, node, context, axes, since=13)
            return [op.Squeeze(value, *extra, **attributes)]
        middle = rank + len(first) if rank is not None else None
        added, removed = normalize_axes(first, middle), normalize_axes(second, middle)
        if added is None or removed is None:
            return NoMatch("an axis counts from the back and the rank is not known", node)
        return _cancel(node, value, sorted(added), sorted(removed), op, context)


def outer_axes(axes: list[int], skipped: list[int]) -> list[int]:
    """Axes of a tensor without the axes `skipped`, as axes of the tensor with them."""
    found = []
    for axis in axes:
        for other in sorted(skipped):
            axis += other <= axis
        found.append(axis)
    return found


def inner_axes(axes: list[int], skipped: list[int]) -> list[int]:
    """The inverse of `outer_axes`, for axes that are not skipped."""
    return [axis - sum(other < axis for other in skipped) for axis in axes]


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
