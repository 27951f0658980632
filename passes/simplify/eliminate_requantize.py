"""Keep what is already quantized."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir
from onnx_ir import DataType
from opgraft.ir.program import constant_array
from opgraft.passes._pass import NoMatch, PassContext
from opgraft.passes.simplify._nop import NopPass
from opgraft.passes.simplify._operands import (
    int_attribute,
    operand,
    producer,
    refuse_parameters,
    same_constant,
)

_TYPES = (DataType.INT8, DataType.UINT8, DataType.INT16, DataType.UINT16)
# Between these, (q - z) * s neither overflows nor underflows, and dividing by s again is off by less than a step.
_SMALLEST_SCALE, _LARGEST_SCALE = 1e-30, 1e30


class EliminateRequantize(NopPass):
    """QuantizeLinear(DequantizeLinear(q, s, z), s, z) -> q

    For integers of 8 and 16 bits and float32 scales of ordinary size: the relative error of multiplying and dividing
    by s is 2 ** -23, of at most 2 ** 17 steps, so rounding finds q again.
    """

    roots: ClassVar[tuple[str, ...]] = ("QuantizeLinear",)

    def source(self, node: onnx_ir.Node, context: PassContext) -> onnx_ir.Value | NoMatch:
        inner = producer(node.inputs[0], node.graph, "DequantizeLinear")
        value = inner.inputs[0] if inner is not None else None
        if inner is None or value is None:
            return NoMatch("the operand is not dequantized", node)
        refused = refuse_parameters(node) or refuse_parameters(inner)
        if refused is not None:
            return refused
        if value.dtype not in _TYPES or value.dtype != _target(node):
            return NoMatch("the types differ, or are not integers of 8 or 16 bits", node)
        if not (same_constant(inner.inputs[1], node.inputs[1]) and same_constant(operand(inner, 2), operand(node, 2))):
            return NoMatch("scale or zero point differ", node)
        scale = constant_array(node.inputs[1])
        if scale is None or scale.dtype != np.float32 or int_attribute(node, "precision", 0):
            return NoMatch("the scale is not a float32 constant", node)
        if not ((scale >= _SMALLEST_SCALE) & (scale <= _LARGEST_SCALE)).all():
            return NoMatch("the scale is not of ordinary size", node)
        for name, default in (("axis", 1), ("block_size", 0)):
            if int_attribute(inner, name, default) != int_attribute(node, name, default):
                return NoMatch("the axes or blocks differ", node)
        return value


def _target(node: onnx_ir.Node) -> DataType | None:
    zero = operand(node, 2)
    if zero is not None:
        return zero.dtype
    return DataType(int_attribute(node, "output_dtype", 0) or int(DataType.UINT8))
