"""Remove single repetition."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.ir.program import constant_ints
from opgraft.passes._pass import NoMatch, PassContext
from opgraft.passes.simplify._nop import NopPass
from opgraft.passes.simplify._operands import operand


class EliminateNopTile(NopPass):
    """Tile(x, 1) -> x"""

    roots: ClassVar[tuple[str, ...]] = ("Tile",)

    def source(self, node: onnx_ir.Node, context: PassContext) -> onnx_ir.Value | NoMatch:
        value, repeats = node.inputs[0], constant_ints(operand(node, 1))
        if value is None or repeats is None or len(node.inputs) != 2:
            return NoMatch("the repeats are not constant", node)
        return value if all(r == 1 for r in repeats) else NoMatch("it repeats", node)
