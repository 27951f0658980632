"""Remove splits into one part."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.passes._pass import NoMatch, PassContext
from opgraft.passes.simplify._nop import NopPass


class EliminateNopSplit(NopPass):
    """Split(x) with one output -> x"""

    roots: ClassVar[tuple[str, ...]] = ("Split",)

    def source(self, node: onnx_ir.Node, context: PassContext) -> onnx_ir.Value | NoMatch:
        value = node.inputs[0]
        if value is None or len(node.outputs) != 1:
            return NoMatch("it has several outputs", node)
        return value
