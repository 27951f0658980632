"""Let a reduction keep the axes that are added again."""

from __future__ import annotations

from typing import Any, ClassVar

import onnx_ir
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._extents import rank_of
from opgraft.passes.simplify._operands import (
    has_operand,
    int_attribute,
    ints_operand,
    is_single_use,
    normalize_axes,
    producer,
    refuse_parameters,
)

REDUCTIONS = (
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceSumSquare",
    "ArgMax",
    "ArgMin",
)


class FuseReduceUnsqueeze(NodePass):
    """Unsqueeze(Reduce(x, axes, keepdims=0), axes) -> Reduce(x, axes, keepdims=1)"""

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Unsqueeze",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        return change_keepdims(node, op, keeps=0)


def change_keepdims(node: onnx_ir.Node, op: Rewriter, keeps: int) -> Replacement | NoMatch:
    """The reduction below `node`, which adds or removes exactly the reduced axes, with the other `keepdims`."""
    inner = producer(node.inputs[0], node.graph, *REDUCTIONS)
    if inner is None or not is_single_use(inner.outputs[0]):
        return NoMatch("the operand is not a reduction with no other user", node)
    refused = refuse_parameters(inner) or refuse_parameters(node)
    if refused is not None:
        return refused
    if int_attribute(inner, "keepdims", 1) != keeps:
        return NoMatch("keepdims is {0}", inner, 1 - keeps)
    rank = rank_of(inner.inputs[0])
    reduced, viewed = reduced_axes(inner, rank), ints_operand(node, "axes", 1)
    if reduced is None or viewed is None:
        return NoMatch("the axes are not known", node)
    if not _same_axes(reduced, viewed, rank):
        return NoMatch("the axes differ from the reduced ones", node)
    attributes: dict[str, Any] = {**inner.attributes, "keepdims": 1 - keeps}
    return [op.op(inner.op_type, inner.inputs, **attributes)[0]]


def _same_axes(reduced: list[int], viewed: list[int], rank: int | None) -> bool:
    """As many of both count from the same rank; one axis named twice, from either end, is one axis less."""
    left, right = normalize_axes(reduced, rank), normalize_axes(viewed, rank)
    if left is None or right is None:
        left, right = reduced, viewed
        if len({a < 0 for a in left}) > 1:
            return False
    return len(left) == len(right) == len(set(left)) and set(left) == set(right)


def reduced_axes(node: onnx_ir.Node, rank: int | None) -> list[int] | None:
    """The axes that a reduction reduces; None when not known, or when it reduces none."""
    if node.op_type in ("ArgMax", "ArgMin"):
        axis = int_attribute(node, "axis", 0)
        return None if axis is None else [axis]
    if has_operand(node, "axes", 1):
        return ints_operand(node, "axes", 1) or None
    if int_attribute(node, "noop_with_empty_axes", 0) or not rank:
        return None
    return list(range(rank))
