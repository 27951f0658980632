"""Take elements of split sequences by slicing: exporters write tensor splits as sequences."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir
from opgraft.ir.sequence_part import sequence_part, split_axis, split_before
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._extents import extents
from opgraft.passes.simplify._operands import opset_of
from opgraft.passes.simplify._ranges import AxisSlice
from opgraft.passes.simplify.compose_slices import write_slice


class EliminateSequenceAt(NodePass):
    """SequenceAt(SplitToSequence(x, sizes), i) -> Slice(x)

    1. `sizes` is a list: they must add up to the dim, which is known
    2. one size: all parts have it, the last one what is left
    3. no sizes: parts of size 1, squeezed with `keepdims = 0`
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("SequenceAt",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        split = split_before(node)
        value = split.inputs[0] if split is not None else None
        if split is None or value is None or split.graph is not node.graph:
            return NoMatch("the sequence is not a tensor that was split", node)
        dims = extents(value)
        axis = split_axis(split, len(dims)) if dims is not None else None
        if dims is None or axis is None:
            return NoMatch("the rank of the tensor, or the axis, is not known", node)
        size = dims[axis]
        if not isinstance(size, int):
            return NoMatch("the dim that is split is not known", node)
        part = sequence_part(node, split, size)
        if part is None:
            return NoMatch("the position or the sizes of the parts are not constant, or do not fit the dim", split)
        taken = write_slice(op, value, [AxisSlice(axis, part.start, part.end, 1)], opset_of(node, context))
        return [_squeezed(op, taken, axis, opset_of(node, context)) if part.is_squeezed else taken]


def _squeezed(op: Rewriter, value: onnx_ir.Value, axis: int, opset: int) -> onnx_ir.Value:
    if opset < 13:
        return op.op("Squeeze", [value], axes=[axis])[0]
    return op.op("Squeeze", [value, op.constant(np.array([axis], np.int64), "axes")])[0]
