"""Indices that count along dims: an index tensor as `offset + i0 * step0 + i1 * step1 + ...`.

Exporters write strided views as a Gather from the flattened tensor, and the writes of an unrolled loop as a ScatterND,
both at places put together of ranges. Where the places are such a grid, the operator is a view or a slice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir
from opgraft.ir.dims import Size
from opgraft.ir.program import constant_array, is_op
from opgraft.ir.shape_rule import is_opaque
from opgraft.ir.shapes import ShapeAnalysis

_MAX_DEPTH = 24


@dataclass(frozen=True)
class Grid:
    offset: Size
    steps: tuple[Size, ...]
    """By dim of the index tensor; 0 along dims of size 1."""


def grid_of(value: onnx_ir.Value | None, facts: ShapeAnalysis, depth: int = _MAX_DEPTH) -> Grid | None:
    """The indices as a grid, or None where they are none, or that is not known."""
    shape = facts.sizes(value)
    if value is None or shape is None or depth == 0:
        return None
    array = constant_array(value)
    if array is not None:
        return grid_of_array(array)
    known = facts.integers(value)
    if known is not None and known.elements.size == 1:
        element = known.elements.reshape(-1)[0]
        return None if element is None or is_opaque(element) else Grid(element, (0,) * len(shape))
    node = value.producer()
    if node is None:
        return None
    if is_op(node, "Range"):
        return _of_range(node, facts)
    if is_op(node, "Add", "Sub", "Mul"):
        return _of_arithmetic(node, facts, len(shape), depth - 1)
    if is_op(node, "Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Expand"):
        inner = grid_of(node.inputs[0], facts, depth - 1)
        before = facts.sizes(node.inputs[0])
        return None if inner is None or before is None else _reshaped(inner, tuple(before), tuple(shape), node)
    return None


def grid_of_array(array: np.ndarray) -> Grid | None:
    """Numbers as a grid, where they are one."""
    if array.dtype.kind not in "iu" or array.size == 0:
        return None
    offset = int(array.reshape(-1)[0])
    counted = np.full(array.shape, offset, np.int64)
    steps = []
    for axis, size in enumerate(array.shape):
        step = int(array.take(1, axis).reshape(-1)[0]) - offset if size > 1 else 0
        steps.append(step)
        counted += step * np.arange(size).reshape((size, *(1,) * (array.ndim - 1 - axis)))
    return Grid(offset, tuple(steps)) if np.array_equal(counted, array) else None


def _of_range(node: onnx_ir.Node, facts: ShapeAnalysis) -> Grid | None:
    parts = [facts.integers(operand) for operand in node.inputs]
    if any(part is None or part.elements.size != 1 for part in parts):
        return None
    start, _, step = (part.elements.reshape(-1)[0] for part in parts if part is not None)
    if start is None or step is None or is_opaque(start) or is_opaque(step):
        return None
    return Grid(start, (step,))


def _of_arithmetic(node: onnx_ir.Node, facts: ShapeAnalysis, rank: int, depth: int) -> Grid | None:
    grids = [grid_of(operand, facts, depth) for operand in node.inputs]
    if len(grids) != 2 or grids[0] is None or grids[1] is None:
        return None
    left, right = (Grid(g.offset, (0,) * (rank - len(g.steps)) + g.steps) for g in grids if g is not None)
    if is_op(node, "Mul"):
        if any(step != 0 for step in left.steps):
            left, right = right, left
        if any(step != 0 for step in left.steps):
            return None
        return Grid(left.offset * right.offset, tuple(left.offset * step for step in right.steps))
    sign = -1 if is_op(node, "Sub") else 1
    steps = tuple(a + sign * b for a, b in zip(left.steps, right.steps, strict=True))
    return Grid(left.offset + sign * right.offset, steps)


def _reshaped(grid: Grid, before: tuple[Size, ...], after: tuple[Size, ...], node: onnx_ir.Node) -> Grid | None:
    """Through a change of shape that only adds, removes or stretches dims of size 1."""
    if is_op(node, "Expand"):
        return Grid(grid.offset, (0,) * (len(after) - len(before)) + grid.steps)
    kept = [step for step, size in zip(grid.steps, before, strict=True) if size != 1]
    if [size for size in before if size != 1] != [size for size in after if size != 1]:
        return None
    steps = iter(kept)
    return Grid(grid.offset, tuple(0 if size == 1 else next(steps) for size in after))


def is_row_major(grid: Grid, sizes: tuple[Size, ...]) -> bool:
    """Whether the grid counts all places of a tensor of these sizes in order, from 0."""
    step: Size = 1
    for size, given in zip(reversed(sizes), reversed(grid.steps), strict=True):
        if size != 1 and given != step:
            return False
        step = step * size
    return bool(grid.offset == 0)
