"""Remove selections that always select the same."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.ir.program import constant_array
from opgraft.passes._pass import Contract, NoMatch, PassContext
from opgraft.passes.simplify._extents import extents, is_absorbed
from opgraft.passes.simplify._nop import NopPass


class EliminateNopWhere(NopPass):
    """Where(true, a, b) -> a; Where(false, a, b) -> b; Where(c, a, a) -> a

    Only where the other operands do not widen what is selected. The runtime's Where may turn -0.0 into 0.0.
    """

    contract: ClassVar[Contract] = Contract.NUMERIC
    roots: ClassVar[tuple[str, ...]] = ("Where",)

    def source(self, node: onnx_ir.Node, context: PassContext) -> onnx_ir.Value | NoMatch:
        condition, a, b = node.inputs
        flags = constant_array(condition)
        chosen: onnx_ir.Value | None
        if a is not None and a is b:
            chosen = a
        elif flags is not None and flags.size and (flags.all() or not flags.any()):
            chosen = a if flags.all() else b
        else:
            return NoMatch("the condition is not constant and the operands differ", node)
        target = extents(chosen)
        if chosen is None or not all(is_absorbed(extents(v), target) for v in node.inputs if v is not chosen):
            return NoMatch("another operand may widen the selected one", node)
        return chosen
