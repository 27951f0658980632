"""Remove exact detours of types."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from onnx_ir import DataType
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter, can_stand_for
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._operands import int_attribute, producer

# Bits of the integers that a type holds exactly, sign apart: (signed, bits).
_INTEGERS = {
    DataType.BOOL: (False, 1),
    DataType.UINT8: (False, 8),
    DataType.UINT16: (False, 16),
    DataType.UINT32: (False, 32),
    DataType.UINT64: (False, 64),
    DataType.INT8: (True, 7),
    DataType.INT16: (True, 15),
    DataType.INT32: (True, 31),
    DataType.INT64: (True, 63),
}
_FLOATS = {DataType.FLOAT16: 11, DataType.BFLOAT16: 8, DataType.FLOAT: 24, DataType.DOUBLE: 53}
_WIDER = {
    (DataType.FLOAT16, DataType.FLOAT),
    (DataType.FLOAT16, DataType.DOUBLE),
    (DataType.BFLOAT16, DataType.FLOAT),
    (DataType.BFLOAT16, DataType.DOUBLE),
    (DataType.FLOAT, DataType.DOUBLE),
}


class ComposeCasts(NodePass):
    """Cast(Cast(x, to=B), to=C) -> Cast(x, to=C), or x

    Only where B holds every value of x's type exactly, and the step from B to C does to those values what a direct
    cast does: between floats, between integers, or where C holds them exactly too. Not from a float to an integer,
    where numbers out of range end differently by each route.
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Cast",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        inner = producer(node.inputs[0], node.graph, "Cast")
        value = inner.inputs[0] if inner is not None else None
        if inner is None or value is None or value.dtype is None:
            return NoMatch("the operand is not the cast of a value of known type", node)
        middle, target = int_attribute(inner, "to"), int_attribute(node, "to")
        if middle is None or target is None:
            return NoMatch("a type is a parameter of the function", node)
        if not _is_exact_detour(value.dtype, DataType(middle), DataType(target)):
            return NoMatch("the detour changes numbers", node)
        if value.dtype == DataType(target):
            refused = can_stand_for(value, node.outputs[0])
            return refused if refused is not None else [value]
        return [op.Cast(value, to=target)]


def _holds(wide: DataType, narrow: DataType) -> bool:
    """Whether `wide` represents every value of `narrow` exactly."""
    if wide == narrow:
        return wide in _INTEGERS or wide in _FLOATS
    if narrow in _FLOATS:
        return (narrow, wide) in _WIDER
    if narrow not in _INTEGERS:
        return False
    signed, bits = _INTEGERS[narrow]
    if wide in _FLOATS:
        # A half ends at 65504: 8 bits are safe, 16 are not.
        return bits <= min(_FLOATS[wide], 8 if wide == DataType.FLOAT16 else 53)
    if wide == DataType.BOOL:
        return False
    wide_signed, wide_bits = _INTEGERS.get(wide, (False, 0))
    return bits <= wide_bits and (wide_signed or not signed)


def _is_exact_detour(source: DataType, middle: DataType, target: DataType) -> bool:
    if not _holds(middle, source):
        return False
    if _holds(target, source):
        return True
    if source in _FLOATS:
        return target in _FLOATS
    return target in _FLOATS or (middle in _INTEGERS and target in _INTEGERS)
