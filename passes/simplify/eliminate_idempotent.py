"""Remove what an idempotent operator leaves as it is."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.passes._pass import NoMatch, PassContext
from opgraft.passes.simplify._nop import NopPass
from opgraft.passes.simplify._operands import producer

_ROUNDED = ("Ceil", "Floor", "Round")
# Operator -> operators whose results it does not change.
_FIXED = {
    "Relu": ("Relu",),
    "Abs": ("Abs",),
    "Sign": ("Sign",),
    **dict.fromkeys(_ROUNDED, _ROUNDED),
}


class EliminateIdempotent(NopPass):
    """f(f(x)) -> f(x) for Relu, Abs, Sign, Ceil, Floor, Round; also Ceil(Floor(x)) -> Floor(x) and the like"""

    roots: ClassVar[tuple[str, ...]] = tuple(_FIXED)

    def source(self, node: onnx_ir.Node, context: PassContext) -> onnx_ir.Value | NoMatch:
        value = node.inputs[0]
        if value is None or producer(value, node.graph, *_FIXED[node.op_type]) is None:
            return NoMatch("the operand is not the result of the same operator", node)
        return value
