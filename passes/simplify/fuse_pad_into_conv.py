"""Let convolutions pad their input themselves."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir
from opgraft.ir.program import constant_array, is_op
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._weights import check_literal
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._padding import SpatialPadding, is_positive_zero, own_pads, spatial_padding


class FusePadIntoConv(NodePass):
    """Conv(Pad(x, p), w, pads = q) -> Conv(x, w, pads = p + q)

    1. Conv pads with zero.
    2. ConvInteger pads with the zero point of its input.
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Conv", "ConvInteger")

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        weight = node.inputs[1]
        if weight is None or weight.shape is None:
            return NoMatch("the rank of the weight is not known", node)
        rank = len(weight.shape)
        padding = spatial_padding(node.inputs[0], rank)
        pads = check_literal(node) or own_pads(node, rank - 2)
        if isinstance(padding, NoMatch) or isinstance(pads, NoMatch):
            return padding if isinstance(padding, NoMatch) else pads  # type: ignore[return-value]
        refused = _check_number(node, padding)
        if refused is not None:
            return refused
        total = [p + q for p, q in zip((*padding.begins, *padding.ends), pads, strict=True)]
        attributes = {name: a.value for name, a in node.attributes.items() if name != "auto_pad"} | {"pads": total}
        return op.op(node.op_type, [padding.value, *node.inputs[1:]], **attributes)


def _check_number(node: onnx_ir.Node, padding: SpatialPadding) -> NoMatch | None:
    point = node.inputs[2] if is_op(node, "ConvInteger") and len(node.inputs) > 2 else None
    if point is None:
        return None if is_positive_zero(padding.number) else NoMatch("the padding number is not zero", node)
    zero = constant_array(point)
    number = 0 if padding.number is None else padding.number
    if zero is None or zero.size != 1 or not np.all(zero == number):
        return NoMatch("the padding number is not the zero point", node)
    return None
