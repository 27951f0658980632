"""Let operators broadcast by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import onnx_ir
from opgraft.ir.program import constant_ints
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._extents import Extent, extents
from opgraft.passes.simplify._operands import operand, producer

# Operators whose result at a place depends on nothing but the operands there: not those which vector code computes
# in other bits than the scalar code at the end of a row (Pow), or chooses otherwise between zeros (Max, Min).
_OPERATORS = (
    *("Add", "Sub", "Mul", "Div", "And", "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift"),
    *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Where"),
)


class EliminateBroadcastExpand(NodePass):
    """Add(Expand(x, shape), y) -> Add(x, y), and other operators that broadcast

    1. the shape is Shape(y)
    2. every dim that Expand widens is a dim of another operand
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = _OPERATORS
    partners: ClassVar[tuple[str, ...]] = ("Expand",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        for index, value in enumerate(node.inputs):
            expand = producer(value, node.graph, "Expand")
            if expand is None or expand.inputs[0] is None:
                continue
            others = [v for i, v in enumerate(node.inputs) if i != index and v is not None]
            if any(_is_supplied(expand, other) for other in others):
                operands = list(node.inputs)
                operands[index] = expand.inputs[0]
                attributes: dict[str, Any] = dict(node.attributes)
                return [op.op(node.op_type, operands, **attributes)[0]]
        return NoMatch("no operand is an Expand to dims that another operand has", node)


def _is_supplied(expand: onnx_ir.Node, other: onnx_ir.Value) -> bool:
    """Whether `other` broadcasts the operand of `expand` at least as far as `expand` does."""
    shape = operand(expand, 1)
    measured = producer(shape, None, "Shape")
    if measured is not None and measured.inputs[0] is other and not measured.attributes:  # 1
        return True
    source, supplied = extents(expand.inputs[0]), extents(other)
    constant = constant_ints(shape)
    target: Sequence[Extent] | None = constant if constant is not None else extents(expand.outputs[0])
    if source is None or supplied is None or target is None:
        return False
    for back in range(1, len(target) + 1):  # 2
        wanted = target[-back]
        has = source[-back] if back <= len(source) else 1
        given = supplied[-back] if back <= len(supplied) else None
        # A wanted 1 inside the source's rank widens nothing; beyond it, it is an axis of the result.
        if wanted == 1 and (back <= len(source) or back <= len(supplied)):
            continue
        if wanted is None or (back > len(source) and back > len(supplied)):
            return False
        if has != wanted and given != wanted:
            return False
    return True
