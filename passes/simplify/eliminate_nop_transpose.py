"""Remove transposes that keep the order of axes."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.passes._pass import NoMatch, PassContext
from opgraft.passes.simplify._extents import rank_of
from opgraft.passes.simplify._nop import NopPass
from opgraft.passes.simplify._operands import ints_attribute


class EliminateNopTranspose(NopPass):
    """Transpose(x, perm=(0, 1, ...)) -> x

    Without `perm` the axes are reversed: nothing at rank 0 and 1.
    """

    roots: ClassVar[tuple[str, ...]] = ("Transpose",)

    def source(self, node: onnx_ir.Node, context: PassContext) -> onnx_ir.Value | NoMatch:
        value = node.inputs[0]
        if value is None:
            return NoMatch("the input is absent", node)
        if "perm" in node.attributes:
            perm = ints_attribute(node, "perm")
            if perm is not None and perm == list(range(len(perm))):
                return value
            return NoMatch("the permutation is not the identity", node)
        rank = rank_of(value)
        return value if rank is not None and rank < 2 else NoMatch("it reverses the axes", node)
