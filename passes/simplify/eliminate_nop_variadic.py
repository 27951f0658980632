"""Remove reductions over a list of one operand."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.passes._pass import NoMatch, PassContext
from opgraft.passes.simplify._nop import NopPass


class EliminateNopVariadic(NopPass):
    """Sum(x), Max(x), Min(x), Mean(x) -> x"""

    roots: ClassVar[tuple[str, ...]] = ("Sum", "Max", "Min", "Mean")

    def source(self, node: onnx_ir.Node, context: PassContext) -> onnx_ir.Value | NoMatch:
        value = node.inputs[0] if len(node.inputs) == 1 else None
        return value if value is not None else NoMatch("it has several operands", node)
