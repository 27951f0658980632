"""FX rules of ONNX Runtime's own operators (domain com.microsoft) that exporters and its optimizer write."""

from __future__ import annotations

import torch
from opgraft.ir.fx import ops_contrib as ops
from opgraft.ir.fx import rules_elementwise, rules_norm
from opgraft.ir.fx.call import Call, Outputs, Rule

aten = torch.ops.aten


def fast_gelu(call: Call) -> Outputs:
    return call.emit(aten.gelu.default, _plus_bias(call), approximate="tanh")


def bias_gelu(call: Call) -> Outputs:
    return call.emit(aten.gelu.default, _plus_bias(call))


def _plus_bias(call: Call) -> torch.fx.Node:
    x = call.tensor(0)
    return call.emit(aten.add.Tensor, x, call.tensor(1)) if call.has(1) else x


def quick_gelu(call: Call) -> Outputs:
    return call.emit(ops.quick_gelu, call.tensor(0), call.float_attribute("alpha", 1.702))


def fused_matmul(call: Call) -> Outputs:
    flags = [bool(call.int_attribute(name, 0)) for name in ("transA", "transB", "transBatchA", "transBatchB")]
    return call.emit(ops.fused_matmul, call.tensor(0), call.tensor(1), call.float_attribute("alpha", 1.0), *flags)


def skip_layer_normalization(call: Call) -> Outputs:
    """Inputs: x, skip, scale, beta, bias; outputs: result, mean, inverse deviation, the sum that was normalized."""
    tensors = (*(call.tensor(i) for i in range(3)), call.optional(3), call.optional(4))
    made = call.emit(ops.skip_layer_norm, *tensors, call.float_attribute("epsilon", 1e-12))
    return call.outputs_of(made, 4)


def skip_simplified_layer_normalization(call: Call) -> Outputs:
    """Inputs: x, skip, scale, bias."""
    tensors = (*(call.tensor(i) for i in range(3)), call.optional(3))
    made = call.emit(ops.skip_rms_norm, *tensors, call.float_attribute("epsilon", 1e-12))
    return call.outputs_of(made, 4)


CONTRIB_RULES: dict[str, Rule] = {
    "BiasGelu": bias_gelu,
    "FastGelu": fast_gelu,
    "FusedMatMul": fused_matmul,
    "Gelu": rules_elementwise.gelu,
    "LayerNormalization": rules_norm.layer_normalization,
    "QuickGelu": quick_gelu,
    "SimplifiedLayerNormalization": rules_norm.rms_normalization,
    "SkipLayerNormalization": skip_layer_normalization,
    "SkipSimplifiedLayerNormalization": skip_simplified_layer_normalization,
}
