"""Merge clamps of clamps."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import onnx_ir
from opgraft.ir.program import constant_array, constant_tensor
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._operands import has_parameters, operand, opset_of, producer

Bound = float | int | None


class FuseClips(NodePass):
    """Clip(Clip(x, a, b), c, d) -> Clip(x, clip(a, c, d), clip(b, c, d)); a Relu is Clip(x, 0, inf)

    Exact in the reference executor, whose Clip and Relu both pass NaN and return x itself when it equals a bound. Its
    Clip without a bound ends at the largest finite number, Relu does not: so Relu alone never becomes a Clip.
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Clip", "Relu")
    partners: ClassVar[tuple[str, ...]] = ("Clip",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        inner = producer(node.inputs[0], node.graph, "Clip", "Relu")
        value = inner.inputs[0] if inner is not None else None
        if inner is None or value is None:
            return NoMatch("the operand is not clamped", node)
        if inner.op_type == node.op_type == "Relu":
            return NoMatch("eliminate-idempotent removes the second Relu", node)
        first, second = _bounds(inner), _bounds(node)
        if first is None or second is None:
            return NoMatch("the bounds are not ordered constants", node)
        low = second[0] if first[0] is None else _clamp(first[0], second)
        high = second[1] if first[1] in (None, math.inf) else _clamp(first[1], second)
        if low == 0 and high == 0:
            return NoMatch("the one result is zero, and a zero of the other sign would pass", node)
        dtype = _dtype(value, inner, node)
        if dtype is None:
            return NoMatch("the type is not known", node)
        return [_write(op, value, dtype, low, None if high == math.inf else high, opset_of(node, context))]


def _clamp(number: Bound, bounds: tuple[Bound, Bound]) -> Bound:
    low, high = bounds
    if number is None:
        return None
    if low is not None and number < low:
        return low
    return high if high is not None and number > high else number


def _bounds(node: onnx_ir.Node) -> tuple[Bound, Bound] | None:
    """The bounds, None where absent; None for both when they are not known, not numbers, or in the wrong order."""
    if node.op_type == "Relu":
        return (0.0, math.inf)
    if has_parameters(node):
        return None
    found: list[Bound] = []
    for name, index in (("min", 1), ("max", 2)):
        attribute = node.attributes.get(name)
        given = operand(node, index)
        if attribute is not None:
            found.append(float(np.float32(attribute.value)))
        elif given is None:
            found.append(None)
        else:
            array = constant_array(given)
            if array is None or array.size != 1:
                return None
            number = array.reshape(-1)[0]
            found.append(int(number) if array.dtype.kind in "iu" else float(number))
    low, high = found
    if any(b is not None and (math.isnan(b) or math.isinf(b)) for b in found):
        return None
    if low is not None and high is not None and low > high:
        return None
    return low, high


def _dtype(value: onnx_ir.Value, *clamps: onnx_ir.Node) -> onnx_ir.DataType | None:
    """The type of `value`, by itself or from a bound."""
    tensors = [constant_tensor(bound) for node in clamps for bound in node.inputs[1:]]
    return value.dtype or next((t.dtype for t in tensors if t is not None), None)


def _write(
    op: Rewriter, value: onnx_ir.Value, dtype: onnx_ir.DataType, low: Bound, high: Bound, opset: int
) -> onnx_ir.Value:
    if opset < 11:
        bounds: dict[str, Any] = {k: float(v) for k, v in (("min", low), ("max", high)) if v is not None}
        return op.op("Clip", [value], **bounds)[0]
    operands = [
        op.constant(np.array(bound, dtype=dtype.numpy()), name) if bound is not None else None
        for name, bound in (("min", low), ("max", high))
    ]
    while operands and operands[-1] is None:
        operands.pop()
    return op.op("Clip", [value, *operands])[0]
