"""Merge views of views into one reshape."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir
from opgraft.ir.program import constant_ints
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._extents import extents, spell_reshape
from opgraft.passes.simplify._operands import int_attribute, operand, producer

_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


class ComposeReshapes(NodePass):
    """view(view(x)) -> Reshape(x, shape), for Reshape, Flatten, Squeeze and Unsqueeze

    1. the outer shape is an operand without entries that copy dims (0): it is taken as it is
    2. the shape of the result can be spelled as a constant that copies dims of x, with one -1 at most
    Squeeze and Unsqueeze of each other are left to compose-squeezes and compose-unsqueezes, which keep them.
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = _VIEWS

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        inner = producer(node.inputs[0], node.graph, *_VIEWS)
        value = inner.inputs[0] if inner is not None else None
        if inner is None or value is None:
            return NoMatch("the operand is not a view", node)
        if {node.op_type, inner.op_type} <= {"Squeeze", "Unsqueeze"}:
            return NoMatch("squeezes are merged as squeezes", node)
        shape = operand(node, 1)
        if node.op_type == "Reshape" and shape is not None:
            target = constant_ints(shape)
            allow_zero = int_attribute(node, "allowzero", 0)
            if target is not None and (0 not in target) and allow_zero is not None:  # 1
                return [op.Reshape(value, shape)]
            if target is not None and allow_zero == 0:
                resolved = _resolve_copies(target, inner, value)
                if resolved is not None:
                    return [op.Reshape(value, op.constant(np.array(resolved, dtype=np.int64), "shape"))]
            if target is None:
                return NoMatch("the shape is not constant", node)
        dims = extents(node.outputs[0])
        spelled = spell_reshape(extents(value), dims) if dims is not None else None
        if spelled is None:
            return NoMatch("the shape of the result is not known", node)
        return [op.Reshape(value, op.constant(np.array(spelled, dtype=np.int64), "shape"))]  # 2


def _resolve_copies(target: list[int], inner: onnx_ir.Node, value: onnx_ir.Value) -> list[int] | None:
    """`target` with its zeros, which copy dims of the inner view, as they must read for the view's operand."""
    middle = extents(inner.outputs[0])
    copied = constant_ints(operand(inner, 1)) if inner.op_type == "Reshape" else None
    source = extents(value)
    resolved = []
    for i, entry in enumerate(target):
        if entry != 0:
            resolved.append(entry)
            continue
        dim = middle[i] if middle is not None and i < len(middle) else None
        twice = copied is not None and i < len(copied) and copied[i] == 0 and int_attribute(inner, "allowzero", 0) == 0
        if isinstance(dim, int) and dim > 0:
            resolved.append(dim)
        elif twice or (dim is not None and source is not None and i < len(source) and source[i] == dim):
            resolved.append(0)
        elif copied is not None and i < len(copied) and copied[i] > 0:
            resolved.append(copied[i])
        else:
            return None
    return resolved
