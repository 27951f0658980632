"""FX rules of ONNX Runtime's own operators (domain com.microsoft) that exporters and its optimizer write."""

from __future__ import annotations

from typing import Any

import torch
from opgraft.ir.fx import ops_contrib as ops
from opgraft.ir.fx import ops_elementwise, rules_elementwise, rules_linear, rules_norm, rules_spatial
from opgraft.ir.fx.call import Call, Outputs, Rule
from opgraft.ir.fx.rules_attention_contrib import ATTENTION_CONTRIB_RULES
from opgraft.ir.fx.values import FxValue
from torch import fx

aten = torch.ops.aten


def fast_gelu(call: Call) -> Outputs:
    return call.emit(aten.gelu.default, _plus_bias(call), approximate="tanh")


def bias_gelu(call: Call) -> Outputs:
    return call.emit(aten.gelu.default, _plus_bias(call))


def _plus_bias(call: Call) -> fx.Node:
    x = call.tensor(0)
    return call.emit(aten.add.Tensor, x, call.tensor(1)) if call.has(1) else x


def quick_gelu(call: Call) -> Outputs:
    return call.emit(ops.quick_gelu, call.tensor(0), call.float_attribute("alpha", 1.702))


def fused_matmul(call: Call) -> Outputs:
    flags = [bool(call.int_attribute(name, 0)) for name in ("transA", "transB", "transBatchA", "transBatchB")]
    made = call.emit(ops.fused_matmul, call.tensor(0), call.tensor(1), call.float_attribute("alpha", 1.0), *flags)
    ranks = call.known_rank(0), call.known_rank(1)
    if None in ranks or 1 in ranks:
        return made
    sizes = tuple(call.scope.emission.unknowns.fresh() for _ in range(max(r or 0 for r in ranks)))
    return FxValue(call.builder, call.dtype(0), made, sizes=sizes)


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


def fused_conv(call: Call) -> Outputs:
    """Inputs: those of Conv, and one that is added."""
    made = rules_spatial.conv(call)
    if call.has(3):
        made = call.emit(aten.add.Tensor, made, call.tensor(3))
    return _activated(call, made, call.floats_attribute("activation_params") or [])


def fused_gemm(call: Call) -> Outputs:
    made = rules_linear.gemm(call)
    names = [f"activation_{name}" for name in ("alpha", "beta") if f"activation_{name}" in call.attributes]
    return _activated(call, made, [call.float_attribute(name, 0.0) for name in names])


def _activated(call: Call, made: Outputs, parameters: list[float]) -> Outputs:
    name = call.text_attribute("activation", "")
    if not name:
        return made
    found = _ACTIVATIONS.get(name)
    if found is None:
        raise call.fail(f"activation {name!r} has no torch form")
    target, n_parameters = found
    if len(parameters) != n_parameters:
        raise call.fail(f"activation {name!r} takes {n_parameters} numbers, not {len(parameters)}")
    return call.emit(target, made, *parameters)


_ACTIVATIONS: dict[str, tuple[Any, int]] = {
    "Clip": (aten.clamp.default, 2),
    "HardSigmoid": (ops_elementwise.hard_sigmoid, 2),
    "LeakyRelu": (aten.leaky_relu.default, 1),
    "Relu": (aten.relu.default, 0),
    "Sigmoid": (aten.sigmoid.default, 0),
    "Tanh": (aten.tanh.default, 0),
}


def matmul_n_bits(call: Call) -> Outputs:
    """Inputs: x, codes, scales, zero points, order of the rows, bias."""
    if call.has(4):
        raise call.fail("an order of the rows has no torch form")
    numbers = [call.int_attribute(name, default) for name, default in (("K", 0), ("bits", 4), ("block_size", 0))]
    tensors = (*(call.tensor(i) for i in range(3)), call.optional(3), call.optional(5))
    return call.emit(ops.matmul_n_bits, *tensors, *numbers)


def _like_first(rule: Rule, *, same_sizes: bool = True) -> Rule:
    """The first and the fourth output have the first input's type and rank: what the runtime's optimizer writes has no
    record of them."""

    def typed(call: Call) -> Outputs:
        made = rule(call)
        parts = list(made) if isinstance(made, list | tuple) else [made]
        return [_typed(call, part, same_sizes) if place in (0, 3) else part for place, part in enumerate(parts)]

    return typed


def _typed(call: Call, made: Any, same_sizes: bool) -> Any:
    sizes = call.value(0).sizes
    if sizes is None or not isinstance(made, fx.Node):
        return made
    if not same_sizes:
        sizes = tuple(call.scope.emission.unknowns.fresh() for _ in sizes)
    return FxValue(call.builder, call.dtype(0), made, sizes=sizes)


CONTRIB_RULES: dict[str, Rule] = {
    **ATTENTION_CONTRIB_RULES,
    "BiasGelu": _like_first(bias_gelu),
    "FastGelu": _like_first(fast_gelu),
    "FusedConv": _like_first(fused_conv, same_sizes=False),
    "FusedGemm": _like_first(fused_gemm, same_sizes=False),
    "FusedMatMul": fused_matmul,
    "Gelu": _like_first(rules_elementwise.gelu),
    "LayerNormalization": rules_norm.layer_normalization,
    "MatMulNBits": _like_first(matmul_n_bits, same_sizes=False),
    "QuickGelu": _like_first(quick_gelu),
    "SimplifiedLayerNormalization": _like_first(rules_norm.rms_normalization),
    "SkipLayerNormalization": _like_first(skip_layer_normalization),
    "SkipSimplifiedLayerNormalization": _like_first(skip_simplified_layer_normalization),
}
