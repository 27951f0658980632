"""Let MatMul take the axes that reshapes fold away before it and unfold after it."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._extents import Extent, are_equal, extents
from opgraft.passes.simplify._operands import is_single_use, producer


class EliminateMatmulReshapes(NodePass):
    """Reshape(MatMul(Reshape(x), Reshape(w))) -> MatMul(x, w)

    1. x [..., K] is folded to [M, K], w [K, N] is not reshaped, the result is [..., N]
    2. x [..., M, K] and w [..., K, N] with equal leading dims, which are folded to one and unfolded again
    """

    contract: ClassVar[Contract] = Contract.NUMERIC
    roots: ClassVar[tuple[str, ...]] = ("Reshape",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        product = producer(node.inputs[0], node.graph, "MatMul")
        if product is None or not is_single_use(product.outputs[0]):
            return NoMatch("the operand is not a MatMul with no other user", node)
        left, right = (producer(v, node.graph, "Reshape") for v in product.inputs)
        x = left.inputs[0] if left is not None else None
        w = right.inputs[0] if right is not None else product.inputs[1]
        a, b, result = extents(x), extents(w), extents(node.outputs[0])
        if left is None or x is None or w is None or not a or not b or result is None:
            return NoMatch("the left operand is not reshaped, or a shape is not known", node)
        folded = extents(product.inputs[0])
        if right is None:
            proved = folded is not None and len(folded) == len(b) == 2 and _is_folded_rows(a, b, result, folded)
        else:
            proved = _is_folded_batch(a, b, result, folded, extents(product.inputs[1]))
        return [op.MatMul(x, w)] if proved else NoMatch("the reshapes may move numbers across rows", node)


def _is_folded_rows(a: list[Extent], b: list[Extent], result: list[Extent], folded: list[Extent]) -> bool:  # 1
    keeps_rows = isinstance(a[-1], int) and a[-1] == folded[-1]
    return len(a) > 1 and keeps_rows and are_equal(result, [*a[:-1], b[-1]])


def _is_folded_batch(
    a: list[Extent], b: list[Extent], result: list[Extent], left: list[Extent] | None, right: list[Extent] | None
) -> bool:  # 2
    if left is None or right is None or len(left) != 3 or len(right) != 3 or len(a) < 3:
        return False
    keeps = are_equal(a[-2:], left[-2:]) and are_equal(b[-2:], right[-2:]) and are_equal(a[:-2], b[:-2])
    # With numbers for the matrices, equal element counts leave the folded dim no choice.
    known = all(isinstance(d, int) and d > 0 for d in (*a[-2:], *b[-2:]))
    return keeps and known and are_equal(result, [*a[:-2], a[-2], b[-1]])
