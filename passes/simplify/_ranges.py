"""Slices read from a node: one entry per axis, with the standard's clamping."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir
from opgraft.ir.program import constant_ints
from opgraft.passes.simplify._operands import ints_attribute, operand

END = 2**63 - 1
BEFORE_FIRST = -(2**63)


@dataclass(frozen=True)
class AxisSlice:
    """`x[start:end:step]` along one axis, as written."""

    axis: int
    start: int
    end: int
    step: int = 1

    def range_of(self, size: int) -> range:
        """The indices it takes of an axis of `size` elements."""
        return range(size)[slice(self.start, self.end, self.step)]


def read_slices(node: onnx_ir.Node) -> list[AxisSlice] | None:
    """The slices of a Slice node, in attribute form (before opset 10) or input form; None when not constant."""
    axes: list[int] | None
    steps: list[int] | None
    if "starts" in node.attributes:
        starts, ends = ints_attribute(node, "starts"), ints_attribute(node, "ends")
        axes = ints_attribute(node, "axes")
        steps = None
        unknown = "axes" in node.attributes and axes is None
    else:
        starts, ends = constant_ints(operand(node, 1)), constant_ints(operand(node, 2))
        axes, steps = constant_ints(operand(node, 3)), constant_ints(operand(node, 4))
        unknown = (operand(node, 3) is not None and axes is None) or (operand(node, 4) is not None and steps is None)
    if starts is None or ends is None or unknown:
        return None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        return None
    return [AxisSlice(*parts) for parts in zip(axes, starts, ends, steps, strict=True)]
