"""Reshape by a constant where the result's shape is known."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir
from opgraft.ir.program import constant_tensor
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._extents import extents, spell_reshape
from opgraft.passes.simplify._operands import operand


class MaterializeReshapeShape(NodePass):
    """Reshape(x, shape), shape computed -> Reshape(x, constant)

    Where the shape of the result is known but for one dim, or for dims that x has at the same place.
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Reshape",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        value, shape = node.inputs[0], operand(node, 1)
        if value is None or shape is None or constant_tensor(shape) is not None:
            return NoMatch("the shape is constant already", node)
        dims = extents(node.outputs[0])
        spelled = spell_reshape(extents(value), dims) if dims is not None else None
        if spelled is None:
            return NoMatch("several dims of the result are not known", node)
        return [op.Reshape(value, op.constant(np.array(spelled, dtype=np.int64), "shape"))]
