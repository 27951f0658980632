"""Elements of a split sequence as slices of the tensor: the form in which exporters write splits of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import onnx_ir
from opgraft.ir.program import constant_ints, constant_tensor, is_op


@dataclass(frozen=True)
class SequencePart:
    """`source[start : start + size]` along `axis`, cut off at the end of the dim."""

    source: onnx_ir.Value
    axis: int
    start: int
    size: int


def sequence_part(node: onnx_ir.Node) -> SequencePart | None:
    """What SequenceAt(SplitToSequence(x, sizes), i) takes, where the list of sizes and the position are constant."""
    sequence = node.inputs[0]
    split = sequence.producer() if sequence is not None else None
    index = constant_ints(node.inputs[1])
    if split is None or not is_op(split, "SplitToSequence") or not index or len(split.inputs) < 2:
        return None
    source, tensor, sizes = split.inputs[0], constant_tensor(split.inputs[1]), constant_ints(split.inputs[1])
    if source is None or tensor is None or sizes is None or len(tensor.shape) > 1:
        return None
    axis = split.attributes.get("axis")
    position = axis.as_int() if axis is not None else 0
    if not len(tensor.shape):
        return SequencePart(source, position, index[0] * sizes[0], sizes[0]) if index[0] >= 0 else None
    if not -len(sizes) <= index[0] < len(sizes):
        return None
    place = index[0] % len(sizes)
    start = [0, *accumulate(sizes)][place]
    return SequencePart(source, position, start, sizes[place])
