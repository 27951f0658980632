"""Remove slices of everything."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.passes._pass import NoMatch, PassContext
from opgraft.passes.simplify._extents import extents
from opgraft.passes.simplify._nop import NopPass
from opgraft.passes.simplify._ranges import AxisSlice, read_slices

# Ends at and above this mean "to the end" to every exporter; no dim of a tensor in memory reaches it.
_FAR = 2**31 - 1


class EliminateNopSlice(NopPass):
    """Slice(x, 0, n) -> x

    Each sliced axis starts at its first element, steps by 1 and ends at or after its last.
    """

    roots: ClassVar[tuple[str, ...]] = ("Slice",)

    def source(self, node: onnx_ir.Node, context: PassContext) -> onnx_ir.Value | NoMatch:
        value = node.inputs[0]
        slices = read_slices(node)
        if value is None or slices is None:
            return NoMatch("the bounds are not constant", node)
        dims = extents(value)
        for part in slices:
            known = dims is not None and -len(dims) <= part.axis < len(dims)
            size = dims[part.axis] if known and dims is not None else None
            if not _keeps_all(part, size if isinstance(size, int) else None):
                return NoMatch("axis {0} is cut", node, part.axis)
        return value


def _keeps_all(part: AxisSlice, size: int | None) -> bool:
    if size is None:
        return part.start == 0 and part.step == 1 and part.end >= _FAR
    return part.step == 1 and len(part.range_of(size)) == size
