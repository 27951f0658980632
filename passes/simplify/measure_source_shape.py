"""Measure a tensor before what does not change its shape."""

from __future__ import annotations

from typing import Any, ClassVar

import onnx_ir
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._operands import producer

_SAME_SHAPE = (
    *("Abs", "Neg", "Sign", "Ceil", "Floor", "Round", "Exp", "Log", "Sqrt", "Reciprocal", "Erf", "Not", "BitwiseNot"),
    *("Cast", "Identity", "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh"),
    *("Softplus", "Softsign", "Gelu", "Mish", "Swish", "ThresholdedRelu", "Clip", "Softmax", "LogSoftmax", "Hardmax"),
    *("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "IsNaN", "IsInf"),
    *("CumSum", "Trilu", "LRN", "LpNormalization", "DequantizeLinear", "QuantizeLinear", "CastLike"),
    *("LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization", "ScatterND"),
    *("ScatterElements", "Dropout"),
)


class MeasureSourceShape(NodePass):
    """Shape(f(x)) -> Shape(x) where f keeps the shape of its first operand; Size likewise

    Nothing is computed less, unless f had no other user; but shape arithmetic no longer waits for f, and equal
    measurements become one.
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Shape", "Size")

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        inner = producer(node.inputs[0], node.graph, *_SAME_SHAPE)
        value = inner.inputs[0] if inner is not None else None
        if value is None:
            return NoMatch("the operand's operator may change the shape", node)
        attributes: dict[str, Any] = dict(node.attributes)
        return [op.op(node.op_type, [value], **attributes)[0]]
