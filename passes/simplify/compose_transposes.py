"""Merge transposes of transposes."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter, can_stand_for
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._extents import rank_of
from opgraft.passes.simplify._operands import ints_attribute, producer


class ComposeTransposes(NodePass):
    """Transpose(Transpose(x, p), q) -> Transpose(x, p[q]), or x"""

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Transpose",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        inner = producer(node.inputs[0], node.graph, "Transpose")
        value = inner.inputs[0] if inner is not None else None
        if inner is None or value is None:
            return NoMatch("the operand is not transposed", node)
        both = composition(inner, node)
        if both is None:
            return NoMatch("a permutation is not known", node)
        if both == list(range(len(both))):
            refused = can_stand_for(value, node.outputs[0])
            return refused if refused is not None else [value]
        return [op.Transpose(value, perm=both)]


def permutation(node: onnx_ir.Node) -> list[int] | None:
    """The permutation of a Transpose; without the attribute the axes are reversed, which needs the rank."""
    if "perm" in node.attributes:
        return ints_attribute(node, "perm")
    rank = rank_of(node.inputs[0])
    return list(range(rank))[::-1] if rank is not None else None


def composition(inner: onnx_ir.Node, outer: onnx_ir.Node) -> list[int] | None:
    """The permutation of `outer` after `inner`, between which no axis moves."""
    first, second = permutation(inner), permutation(outer)
    if first is None and second is not None and "perm" not in inner.attributes:
        first = list(range(len(second)))[::-1]
    if second is None and first is not None and "perm" not in outer.attributes:
        second = list(range(len(first)))[::-1]
    if first is None or second is None or len(first) != len(second):
        return None
    return [first[i] for i in second]
