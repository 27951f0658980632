"""Move axes of one element without copying."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._extents import extents, spell_reshape
from opgraft.passes.simplify._operands import producer
from opgraft.passes.simplify.compose_transposes import permutation


class TransposeToReshape(NodePass):
    """Transpose(x) that moves axes of size 1 only -> Reshape(x, shape)

    Not beside another transpose, which the permutation may yet be merged with.
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Transpose",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        value, perm = node.inputs[0], permutation(node)
        dims = extents(value)
        if value is None or perm is None or dims is None or len(perm) != len(dims):
            return NoMatch("the permutation or the shape is not known", node)
        moved = [axis for axis in perm if dims[axis] != 1]
        if moved != sorted(moved):
            return NoMatch("an axis of several elements moves", node)
        if perm == sorted(perm):
            return NoMatch("no axis moves", node)
        users = node.outputs[0].uses()
        if producer(value, None, "Transpose") is not None or any(u.node.op_type == "Transpose" for u in users):
            return NoMatch("another transpose is beside it", node)
        target = spell_reshape(dims, [dims[axis] for axis in perm])
        if target is None:
            return NoMatch("several dims are not known", node)
        return [op.Reshape(value, op.constant(np.array(target, dtype=np.int64), "shape"))]
