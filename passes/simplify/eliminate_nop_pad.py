"""Remove padding by nothing."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.passes._pass import NoMatch, PassContext
from opgraft.passes.simplify._nop import NopPass
from opgraft.passes.simplify._operands import ints_operand


class EliminateNopPad(NopPass):
    """Pad(x, 0) -> x"""

    roots: ClassVar[tuple[str, ...]] = ("Pad",)

    def source(self, node: onnx_ir.Node, context: PassContext) -> onnx_ir.Value | NoMatch:
        value = node.inputs[0]
        pads = ints_operand(node, "pads", 1)
        if value is None or pads is None:
            return NoMatch("the pads are not constant", node)
        return NoMatch("it pads or crops", node) if any(pads) else value
