"""Remove gathers of everything in order."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir
from opgraft.ir.program import constant_array
from opgraft.passes._pass import NoMatch, PassContext
from opgraft.passes.simplify._extents import extents
from opgraft.passes.simplify._nop import NopPass
from opgraft.passes.simplify._operands import int_attribute, normalize_axes, operand


class EliminateNopGather(NopPass):
    """Gather(x, (0, 1, ..., n - 1)) -> x"""

    roots: ClassVar[tuple[str, ...]] = ("Gather",)

    def source(self, node: onnx_ir.Node, context: PassContext) -> onnx_ir.Value | NoMatch:
        value, indices = node.inputs[0], constant_array(operand(node, 1))
        axis, dims = int_attribute(node, "axis", 0), extents(value)
        if value is None or indices is None or axis is None or dims is None:
            return NoMatch("the indices or the shape are not known", node)
        axes = normalize_axes([axis], len(dims))
        size = dims[axes[0]] if axes is not None else None
        if not isinstance(size, int) or indices.shape != (size,):
            return NoMatch("the indices do not cover the axis", node)
        wanted = np.arange(size)
        found = np.where(indices < 0, indices.astype(np.int64) + size, indices)
        return value if np.array_equal(found, wanted) else NoMatch("the indices are in another order", node)
