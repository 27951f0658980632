"""FX rules of quantization."""

from __future__ import annotations

import torch
from opgraft.ir.fx import ops_quantize as ops
from opgraft.ir.fx import ops_spatial
from opgraft.ir.fx.call import Call, Outputs, Rule
from opgraft.ir.fx.rules_spatial import Geometry
from opgraft.ir.fx.values import SMALL_INTEGERS, DataType

aten = torch.ops.aten


def _limits(call: Call, dtype: DataType) -> tuple[int, int] | None:
    """The range of an integer type; None for floating-point ones."""
    if dtype in SMALL_INTEGERS:
        return SMALL_INTEGERS[dtype]
    if not dtype.is_integer():
        return None
    info = torch.iinfo(call.torch_type(dtype))
    return info.min, info.max


def quantize_linear(call: Call) -> Outputs:
    target = call.dtype(2) if call.has(2) else call.type_attribute("output_dtype") or DataType.UINT8
    if target is None:
        raise call.fail("the type of the zero point is not known")
    precision = call.type_attribute("precision")
    made = call.emit(
        ops.quantize,
        *(call.tensor(0), call.tensor(1), call.optional(2)),
        *(
            call.int_attribute("axis", 1),
            call.int_attribute("block_size", 0),
            call.torch_type(target),
            _limits(call, target),
        ),
        *(bool(call.int_attribute("saturate", 1)), None if precision is None else call.torch_type(precision)),
    )
    return call.result(made, target)


def dequantize_linear(call: Call) -> Outputs:
    target = call.type_attribute("output_dtype") or call.dtype(1)
    made = call.emit(
        ops.dequantize,
        *(call.tensor(0), call.tensor(1), call.optional(2)),
        *(call.int_attribute("axis", 1), call.int_attribute("block_size", 0), call.torch_type(target)),
    )
    return call.result(made, target)


def dynamic_quantize_linear(call: Call) -> Outputs:
    results = call.outputs_of(call.emit(ops.dynamic_quantize, call.tensor(0)), 3)
    types = (DataType.UINT8, call.dtype(0), DataType.UINT8)
    return [None if r is None else call.result(r, t) for r, t in zip(results, types, strict=True)]


def qlinear_matmul(call: Call) -> Outputs:
    made = call.emit(ops.qlinear_matmul, *(call.tensor(i) for i in range(8)))
    return call.result(made, call.dtype(7))


def qlinear_conv(call: Call) -> Outputs:
    """Inputs: x, scale, zero; weight, scale, zero; scale and zero of the result; bias."""
    kernel = call.ints_attribute("kernel_shape") or call.ints_attribute("strides")
    geometry = Geometry(call, len(kernel) if kernel else call.rank(3) - 2, None)
    accumulated = call.emit(
        ops_spatial.integer_conv,
        *(call.tensor(0), call.tensor(3), call.tensor(2), call.tensor(5)),
        *(geometry.strides, geometry.pads, geometry.dilations, call.int_attribute("group", 1), geometry.auto_pad),
    )
    scales = (call.tensor(1), call.tensor(4), call.tensor(6), call.tensor(7))
    return call.result(call.emit(ops.qlinear_conv_result, accumulated, call.optional(8), *scales), call.dtype(7))


QUANTIZE_RULES: dict[str, Rule] = {
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "QLinearConv": qlinear_conv,
    "QLinearMatMul": qlinear_matmul,
    "QuantizeLinear": quantize_linear,
}
