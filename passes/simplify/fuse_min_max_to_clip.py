"""Write a minimum of a maximum as one clamp."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from onnx_ir import DataType
from opgraft.ir.program import constant_tensor
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._extents import rank_of
from opgraft.passes.simplify._operands import opset_of, producer
from opgraft.passes.simplify.fuse_min_max import split_bound

# Types that the standard's Clip and Min/Max, and the reference executor's kernels of both, have in common.
_TYPES = (DataType.FLOAT, DataType.DOUBLE, DataType.FLOAT16, DataType.INT32, DataType.INT64)


class FuseMinMaxToClip(NodePass):
    """Min(Max(x, a), b) -> Clip(x, a, b) for scalar constants a <= b; Max(Min(x, b), a) likewise

    The same numbers; at a bound of 0.0 the sign of a zero may differ, which Min and Max leave to their vector code.
    """

    contract: ClassVar[Contract] = Contract.NUMERIC
    roots: ClassVar[tuple[str, ...]] = ("Max", "Min")

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        outer = split_bound(node)
        other = "Max" if node.op_type == "Min" else "Min"
        inner = producer(outer[0], node.graph, other) if outer is not None else None
        below = split_bound(inner) if inner is not None else None
        if outer is None or inner is None or below is None:
            return NoMatch("not a minimum of a maximum with constants", node)
        value = below[0]
        bound = constant_tensor(outer[2])
        if opset_of(node, context) < 12 or bound is None or bound.dtype not in _TYPES:
            return NoMatch("Clip does not take this type", node)
        if rank_of(outer[2]) != 0 or rank_of(below[2]) != 0:
            return NoMatch("a bound is not a scalar", node)
        low, high = (below, outer) if node.op_type == "Min" else (outer, below)
        if not low[1] <= high[1]:
            return NoMatch("the bounds are in the wrong order", node)
        return [op.Clip(value, low[2], high[2])]
