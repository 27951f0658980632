"""Take elements of split sequences by slicing: exporters write tensor splits as sequences."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import numpy as np
import onnx_ir
from opgraft.ir.program import constant_ints, constant_tensor
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._extents import extents
from opgraft.passes.simplify._operands import has_operand, int_attribute, opset_of, producer
from opgraft.passes.simplify._ranges import AxisSlice
from opgraft.passes.simplify.compose_slices import write_slice


@dataclass(frozen=True)
class EliminateSequenceAt(NodePass):
    """SequenceAt(SplitToSequence(x, sizes), i) -> Slice(x)

    1. `sizes` is a list: they must add up to the dim, which is known
    2. one size: all parts have it, the last one what is left
    3. no sizes: parts of size 1, squeezed with `keepdims = 0`
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("SequenceAt",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        split = producer(node.inputs[0], node.graph, "SplitToSequence")
        value = split.inputs[0] if split is not None else None
        if split is None or value is None:
            return NoMatch("the sequence is not a tensor that was split", node)
        dims, index = extents(value), constant_ints(node.inputs[1])
        axis = int_attribute(split, "axis", 0)
        if dims is None or axis is None or not -len(dims) <= axis < len(dims):
            return NoMatch("the rank of the tensor is not known", node)
        size = dims[axis]
        if not isinstance(size, int) or index is None:
            return NoMatch("the dim that is split, or the position, is not known", node)
        ends = _ends(split, size)
        if ends is None:
            return NoMatch("the sizes of the parts are not constant, or do not add up to the dim", split)
        if not -len(ends) <= index[0] < len(ends):
            return NoMatch("the sequence is shorter", node)
        place = index[0] % len(ends)
        start = ends[place - 1] if place else 0
        part = write_slice(op, value, [AxisSlice(axis % len(dims), start, ends[place], 1)], opset_of(node, context))
        if has_operand(split, "split", 1) or int_attribute(split, "keepdims", 1):
            return [part]
        return [_squeezed(op, part, axis % len(dims), opset_of(node, context))]


def _ends(split: onnx_ir.Node, size: int) -> list[int] | None:
    """Where each part ends."""
    if not has_operand(split, "split", 1):
        return list(range(1, size + 1))
    tensor, sizes = constant_tensor(split.inputs[1]), constant_ints(split.inputs[1])
    if tensor is None or sizes is None or any(s < 0 for s in sizes):
        return None
    if len(tensor.shape):
        ends = list(accumulate(sizes))
        return ends if ends and ends[-1] == size else None
    return [min(end, size) for end in range(sizes[0], size + sizes[0], sizes[0])] if sizes[0] else None


def _squeezed(op: Rewriter, value: onnx_ir.Value, axis: int, opset: int) -> onnx_ir.Value:
    if opset < 13:
        return op.op("Squeeze", [value], axes=[axis])[0]
    return op.op("Squeeze", [value, op.constant(np.array([axis], np.int64), "axes")])[0]
