"""Elements of a split sequence as slices of the tensor: the form in which exporters write splits of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import onnx_ir
from opgraft.ir.program import constant_ints, constant_tensor, is_op


@dataclass(frozen=True)
class SequencePart:
    """`tensor[start : end]` along the dim that is split; without that dim where `is_squeezed`."""

    start: int
    end: int
    is_squeezed: bool


def split_before(node: onnx_ir.Node) -> onnx_ir.Node | None:
    """The SplitToSequence whose element a SequenceAt takes."""
    split = node.inputs[0].producer() if node.inputs[0] is not None else None
    return split if is_op(split, "SplitToSequence") else None


def split_axis(split: onnx_ir.Node, rank: int) -> int | None:
    """The dim that is split; None where it is a parameter of the function around, or does not exist."""
    attribute = split.attributes.get("axis")
    if attribute is not None and attribute.is_ref():
        return None
    axis = 0 if attribute is None else attribute.as_int()
    return axis % rank if -rank <= axis < rank else None


def sequence_part(node: onnx_ir.Node, split: onnx_ir.Node, size: int) -> SequencePart | None:
    """What the SequenceAt takes of a dim of that size, where sizes of parts and position are constant and fit.

    1. a list of sizes: they add up to the dim
    2. one size: all parts have it, the last one what is left
    3. no sizes: parts of size 1, squeezed with `keepdims = 0`
    """
    index, ends = constant_ints(node.inputs[1]), _part_ends(split, size)
    if not index or ends is None or not -len(ends) <= index[0] < len(ends):
        return None
    place = index[0] % len(ends)
    keeps = split.attributes.get("keepdims")
    if keeps is not None and keeps.is_ref():
        return None
    squeezed = not _has_sizes(split) and keeps is not None and not keeps.as_int()
    return SequencePart(ends[place - 1] if place else 0, ends[place], squeezed)


def _has_sizes(split: onnx_ir.Node) -> bool:
    return len(split.inputs) > 1 and split.inputs[1] is not None


def _part_ends(split: onnx_ir.Node, size: int) -> list[int] | None:
    """Where each part ends."""
    if not _has_sizes(split):
        return list(range(1, size + 1))
    tensor, sizes = constant_tensor(split.inputs[1]), constant_ints(split.inputs[1])
    if tensor is None or sizes is None or any(s < 0 for s in sizes):
        return None
    if len(tensor.shape):
        ends = list(accumulate(sizes))
        return ends if ends and ends[-1] == size else None
    return [min(end, size) for end in range(sizes[0], size + sizes[0], sizes[0])] if sizes[0] else None
