"""Remove arithmetic with the neutral element."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir
from opgraft.ir.program import constant_array, constant_tensor
from opgraft.passes._pass import NoMatch, PassContext
from opgraft.passes.simplify._extents import extents, is_absorbed
from opgraft.passes.simplify._nop import NopPass
from opgraft.passes.simplify._operands import operand

# Operator -> which operands may be the neutral element.
_POSITIONS = {
    "Add": (0, 1),
    "Sub": (1,),
    "Mul": (0, 1),
    "Div": (1,),
    "Pow": (1,),
    "And": (0, 1),
    "Or": (0, 1),
    "Xor": (0, 1),
    "BitwiseAnd": (0, 1),
    "BitwiseOr": (0, 1),
    "BitwiseXor": (0, 1),
    "BitShift": (1,),
}


class EliminateNopArithmetic(NopPass):
    """x * 1, x / 1, x ** 1, x + 0, x - 0, x & true, x | false ... -> x

    Exact in every bit, so for floats x + (-0.0) and x - 0.0 only: x + 0.0 turns -0.0 into 0.0 (eliminate-add-zero).
    x ** 1 for floats only: the runtime computes integer powers in double. The constant may not widen x.
    """

    roots: ClassVar[tuple[str, ...]] = tuple(_POSITIONS)

    def source(self, node: onnx_ir.Node, context: PassContext) -> onnx_ir.Value | NoMatch:
        for position in _POSITIONS[node.op_type]:
            constant = constant_array(operand(node, position))
            # The first element tells of most weights, in a tenth of the time.
            if constant is None or not constant.size or (constant.dtype.kind == "f" and constant.item(0) not in (0, 1)):
                continue
            value = operand(node, 1 - position)
            # Both operands have one type, except that Pow's exponent may have its own.
            dtype = value.dtype if value is not None and node.op_type == "Pow" else type_of_constant(node, position)
            if value is None or not _is_neutral(node.op_type, constant, dtype):
                continue
            if not is_absorbed(list(constant.shape), extents(value)):
                return NoMatch("the constant may widen the other operand", node)
            return value
        return NoMatch("no operand is the neutral element", node)


def type_of_constant(node: onnx_ir.Node, position: int) -> onnx_ir.DataType | None:
    """The type of an operand from its tensor: values in function bodies record none."""
    tensor = constant_tensor(operand(node, position))
    return tensor.dtype if tensor is not None else None


def _is_neutral(op_type: str, constant: np.ndarray, dtype: onnx_ir.DataType | None) -> bool:
    if not constant.size or dtype is None:
        return False
    floating = dtype.is_floating_point()
    if op_type in ("Mul", "Div"):
        return bool((constant == 1).all())
    if op_type == "Pow":
        return floating and bool((constant == 1).all())
    if op_type == "Add" and floating:
        return bool(((constant == 0) & np.signbit(constant)).all())
    if op_type == "Sub" and floating:
        return bool(((constant == 0) & ~np.signbit(constant)).all())
    if op_type == "And":
        return bool(constant.all())
    if op_type == "BitwiseAnd":
        return bool((~constant == 0).all())
    return not constant.any()
