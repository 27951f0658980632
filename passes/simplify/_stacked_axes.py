"""Two nodes in a row that squeeze or unsqueeze: what they say, and axes of one tensor as axes of the other."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir
from opgraft.passes._pass import NoMatch
from opgraft.passes.simplify._extents import rank_of
from opgraft.passes.simplify._operands import ints_operand, normalize_axes, producer


@dataclass(frozen=True)
class StackedAxes:
    """The axes of both nodes, counted from the front."""

    value: onnx_ir.Value
    """What the inner node reads."""
    inner_op: str
    """"Squeeze" or "Unsqueeze"."""
    inner: list[int]
    outer: list[int]


def stacked_axes(node: onnx_ir.Node) -> StackedAxes | NoMatch:
    """What `node` does to the result of a squeeze or unsqueeze."""
    inner = producer(node.inputs[0], node.graph, "Squeeze", "Unsqueeze")
    value = inner.inputs[0] if inner is not None else None
    if inner is None or value is None:
        return NoMatch("the operand is not squeezed or unsqueezed", node)
    first, second = ints_operand(inner, "axes", 1), ints_operand(node, "axes", 1)
    if first is None or second is None:
        return NoMatch("the axes are not known", node)
    # The axes of an unsqueeze are those of its result, the axes of a squeeze those of its operand.
    rank = rank_of(value)
    if rank is not None and inner.op_type == "Unsqueeze":
        rank += len(first)
    before = normalize_axes(first, rank)
    if rank is not None and inner.op_type == "Squeeze":
        rank -= len(first)
    if rank is not None and node.op_type == "Unsqueeze":
        rank += len(second)
    after = normalize_axes(second, rank)
    if before is None or after is None:
        return NoMatch("an axis counts from the back and the rank is not known", node)
    return StackedAxes(value, inner.op_type, before, after)


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
