"""Remove casts to the type that a value has."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.passes._pass import NoMatch, PassContext
from opgraft.passes.simplify._nop import NopPass
from opgraft.passes.simplify._operands import int_attribute


class EliminateNopCast(NopPass):
    """Cast(x, to=dtype(x)) -> x

    CastLike likewise, when both types are known.
    """

    roots: ClassVar[tuple[str, ...]] = ("Cast", "CastLike")

    def source(self, node: onnx_ir.Node, context: PassContext) -> onnx_ir.Value | NoMatch:
        value = node.inputs[0]
        if value is None or value.dtype is None:
            return NoMatch("the type of the input is not known", node)
        if node.op_type == "CastLike":
            like = node.inputs[1]
            target = int(like.dtype) if like is not None and like.dtype is not None else None
        else:
            target = int_attribute(node, "to")
        return value if target == int(value.dtype) else NoMatch("the types differ or are not known", node)
