"""Remove biases of zero."""

from __future__ import annotations

from typing import Any, ClassVar

import onnx_ir
from opgraft.ir.program import constant_array
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._operands import operand, opset_of

_POSITIONS = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2, "QLinearConv": 8}


class EliminateZeroBias(NodePass):
    """Conv(x, w, 0) -> Conv(x, w); ConvTranspose, Gemm (from opset 11) and QLinearConv likewise

    The same number but for a result of -0.0, to which a bias gives the other sign.
    """

    contract: ClassVar[Contract] = Contract.NUMERIC
    roots: ClassVar[tuple[str, ...]] = tuple(_POSITIONS)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        position = _POSITIONS[node.op_type]
        bias = constant_array(operand(node, position))
        if bias is None or bias.any():
            return NoMatch("the bias is absent or not constant zeros", node)
        if node.op_type == "Gemm" and opset_of(node, context) < 11:
            return NoMatch("before opset 11 the bias is required", node)
        attributes: dict[str, Any] = dict(node.attributes)
        return [op.op(node.op_type, node.inputs[:position], **attributes)[0]]
