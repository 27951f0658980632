"""Cancel two transposes with elementwise operators between them."""

from __future__ import annotations

from typing import Any, ClassVar

import onnx_ir
from opgraft.ir.program import constant_tensor, is_op
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._operands import int_attribute, is_single_use
from opgraft.passes.simplify.compose_transposes import composition

# Operators that give an element the same bits wherever it stands in the tensor.
_UNARY = (
    *("Abs", "Neg", "Sign", "Ceil", "Floor", "Round", "Relu", "LeakyRelu", "Clip", "Not", "BitwiseNot", "Sqrt"),
    *("IsNaN", "IsInf", "Reciprocal"),
)
_BINARY = ("Add", "Sub", "Mul", "Div", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor")
_MAX_BETWEEN = 8


class EliminateTransposesAroundElementwise(NodePass):
    """Transpose(f(Transpose(x, p)), q) -> f(x) when q undoes p

    f is a chain of at most 8 elementwise operators whose other operands are constants of one element, each without
    another user.
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Transpose",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        chain: list[tuple[onnx_ir.Node, int]] = []
        value = node.inputs[0]
        while value is not None and is_single_use(value) and len(chain) <= _MAX_BETWEEN:
            inner = value.producer()
            if inner is None or inner.graph is not node.graph:
                break
            if is_op(inner, "Transpose"):
                return _cancel(node, inner, chain, op)
            index = _moving_operand(inner)
            if index is None:
                break
            chain.append((inner, index))
            value = inner.inputs[index]
        return NoMatch("no transpose below elementwise operators", node)


def _moving_operand(node: onnx_ir.Node) -> int | None:
    """The position of the one operand that is not a constant of one element; None for other operators."""
    if is_op(node, "Cast"):
        # To an integer, numbers out of its range may end differently in vector code than at the end of a row.
        to = int_attribute(node, "to")
        return 0 if to is not None and onnx_ir.DataType(to).is_floating_point() else None
    if is_op(node, *_UNARY):
        return 0
    if not is_op(node, *_BINARY):
        return None
    for index in (0, 1):
        tensor = constant_tensor(node.inputs[1 - index])
        # At rank 1 it cannot widen what has two axes to exchange.
        if tensor is not None and tensor.size == 1 and len(tensor.shape) <= 1:
            return index
    return None


def _cancel(
    node: onnx_ir.Node, inner: onnx_ir.Node, chain: list[tuple[onnx_ir.Node, int]], op: Rewriter
) -> Replacement | NoMatch:
    if not chain:
        return NoMatch("nothing between: compose-transposes merges them", node)
    both, value = composition(inner, node), inner.inputs[0]
    if both is None or value is None or len(both) < 2:
        return NoMatch("a permutation is not known", node)
    if both != sorted(both):
        return NoMatch("the second does not undo the first", node)
    for elementwise, index in reversed(chain):
        operands = list(elementwise.inputs)
        operands[index] = value
        attributes: dict[str, Any] = dict(elementwise.attributes)
        moved = op.op(elementwise.op_type, operands, **attributes)[0]
        if elementwise.outputs[0].type is not None:
            moved.type, moved.shape = elementwise.outputs[0].type, value.shape
        value = moved
    return [value]
