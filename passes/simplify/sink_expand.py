"""Compute on what is small, repeat afterwards."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.ir.program import constant_tensor, is_op
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._operands import is_single_use

_UNARY = ("Not", "Cast", "Neg", "Abs", "Relu", "IsNaN", "Floor", "Ceil", "Sign")
_ELEMENTWISE = ("Where", "And", "Or", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Add", "Sub", "Mul")


class SinkExpand(NodePass):
    """f(Expand(x, shape), c) -> Expand(f(x, c), shape)

    f is elementwise and c are constants of one element, so that every element of the result is computed once and
    repeated. What then reads the Expand can often do without it.
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = (*_UNARY, *_ELEMENTWISE)
    partners: ClassVar[tuple[str, ...]] = ("Expand",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        found = [i for i, v in enumerate(node.inputs) if v is not None and is_op(v.producer(), "Expand")]
        if len(found) != 1:
            return NoMatch("not exactly one operand is expanded", node)
        expanded = node.inputs[found[0]]
        expand = expanded.producer() if expanded is not None else None
        if expanded is None or expand is None or expand.graph is not node.graph:
            return NoMatch("the Expand is outside", node)
        if not is_single_use(expanded):
            return NoMatch("the expanded value has other users", expanded)
        source, shape = expand.inputs
        if source is None or source.shape is None:
            return NoMatch("the rank before the Expand is not known", expand)
        for index, value in enumerate(node.inputs):
            if index != found[0] and not _is_one_element(value, len(source.shape)):
                return NoMatch("another operand has more than one element", node)
        inputs = [source if i == found[0] else v for i, v in enumerate(node.inputs)]
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        small = op.op(node.op_type, inputs, **attributes)[0]
        if node.outputs[0].type is not None:
            small.type, small.shape = node.outputs[0].type, source.shape.copy()
        return [op.op("Expand", [small, shape], like=node.outputs[0])[0]]


def _is_one_element(value: onnx_ir.Value | None, rank: int) -> bool:
    """A constant that broadcasts against any tensor of this rank without changing its shape."""
    tensor = constant_tensor(value)
    return tensor is not None and tensor.size == 1 and len(tensor.shape) <= rank
