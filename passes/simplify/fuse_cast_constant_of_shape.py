"""Fill with the type that is wanted."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._operands import int_attribute, producer, refuse_parameters

_KINDS = "biuf"


class FuseCastConstantOfShape(NodePass):
    """Cast(ConstantOfShape(shape, value=v), to=T) -> ConstantOfShape(shape, value=T(v))

    Only numbers that T holds exactly: how others convert is the runtime's business.
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Cast",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        inner = producer(node.inputs[0], node.graph, "ConstantOfShape")
        target = int_attribute(node, "to")
        if inner is None or target is None:
            return NoMatch("the operand is not a ConstantOfShape", node)
        refused = refuse_parameters(inner)
        if refused is not None:
            return refused
        attribute = inner.attributes.get("value")
        number = attribute.as_tensor().numpy() if attribute is not None else np.zeros(1, dtype=np.float32)
        converted = _convert(number, onnx_ir.DataType(target))
        if converted is None:
            return NoMatch("the number changes, or the types are not plain numbers", node)
        return [op.ConstantOfShape(inner.inputs[0], value=onnx_ir.tensor(converted))]


def _convert(number: np.ndarray, target: onnx_ir.DataType) -> np.ndarray | None:
    if target == onnx_ir.DataType.STRING or number.dtype.kind not in _KINDS or target.numpy().kind not in _KINDS:
        return None
    with np.errstate(all="ignore"):
        converted = number.astype(target.numpy())
        back = converted.astype(number.dtype)
    return converted if back.tobytes() == number.tobytes() else None
