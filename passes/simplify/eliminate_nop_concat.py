"""Remove concatenation of one tensor, and empty operands."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter, can_stand_for
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._extents import extents
from opgraft.passes.simplify._operands import int_attribute, normalize_axes


class EliminateNopConcat(NodePass):
    """Concat(x) -> x; Concat(x, empty, y) -> Concat(x, y)

    An operand is empty when its dim along the axis is 0.
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Concat",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        axis = int_attribute(node, "axis", 1)
        if axis is None or any(v is None for v in node.inputs):
            return NoMatch("the axis is not known", node)
        values = [v for v in node.inputs if v is not None]
        kept = [v for v in values if not _is_empty(v, axis)] or values[:1]
        if len(kept) > 1:
            if len(kept) == len(values):
                return NoMatch("several operands, none known to be empty", node)
            return [op.Concat(*kept, axis=axis)]
        refused = can_stand_for(kept[0], node.outputs[0])
        return refused if refused is not None else [kept[0]]


def _is_empty(value: onnx_ir.Value, axis: int) -> bool:
    dims = extents(value)
    axes = normalize_axes([axis], len(dims)) if dims is not None else None
    return dims is not None and axes is not None and dims[axes[0]] == 0
