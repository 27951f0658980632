"""FX rules of normalizations."""

from __future__ import annotations

import torch
from opgraft.ir.fx import ops_norm as ops
from opgraft.ir.fx.call import Call, Outputs, Rule
from opgraft.ir.fx.values import DataType

aten = torch.ops.aten
_SCALE_PER_CHANNEL = 21


def _stash(call: Call) -> torch.dtype | None:
    """What half precision is normalized in."""
    found = DataType(call.int_attribute("stash_type", int(DataType.FLOAT)))
    return call.torch_type(call.scope.widened(found))


def layer_normalization(call: Call) -> Outputs:
    axis, eps = call.int_attribute("axis", -1), call.float_attribute("epsilon", 1e-5)
    scale, rank = call.static_shape(1), call.known_rank()
    n_axes = -axis if axis < 0 else rank - axis if rank is not None else None
    if call.n_outputs == 1 and scale is not None and len(scale) == n_axes and _covers(call, scale):
        return call.emit(aten.layer_norm.default, call.tensor(0), scale, call.tensor(1), call.optional(2), eps)
    made = call.emit(ops.layer_norm, call.tensor(0), call.tensor(1), call.optional(2), axis, eps, _stash(call))
    return call.outputs_of(made, 3)


def _covers(call: Call, scale: list[int]) -> bool:
    """Whether scale and bias have the normalized dims themselves, and are not broadcast over them."""
    sizes = call.value(0).sizes
    if sizes is None or any(
        isinstance(s, int) and s != n for s, n in zip(sizes[len(sizes) - len(scale) :], scale, strict=True)
    ):
        return False
    if 1 in scale and not all(isinstance(s, int) for s in sizes[len(sizes) - len(scale) :]):
        return False
    return not call.has(2) or call.static_shape(2) == scale


def rms_normalization(call: Call) -> Outputs:
    axis, eps = call.int_attribute("axis", -1), call.float_attribute("epsilon", 1e-5)
    return call.emit(ops.rms_norm, call.tensor(0), call.tensor(1), axis, eps, _stash(call))


def group_normalization(call: Call) -> Outputs:
    x, scale, bias = (call.tensor(i) for i in range(3))
    groups, eps = call.int_attribute("num_groups", 1), call.float_attribute("epsilon", 1e-5)
    if call.opset >= _SCALE_PER_CHANNEL:
        return call.emit(torch.group_norm, x, groups, scale, bias, eps)
    return call.emit(ops.group_norm_per_group, x, scale, bias, groups, eps)


def instance_normalization(call: Call) -> Outputs:
    """Each channel is a group of its own."""
    x, scale, bias = (call.tensor(i) for i in range(3))
    return call.emit(torch.group_norm, x, call.size(1, 0), scale, bias, call.float_attribute("epsilon", 1e-5))


def batch_normalization(call: Call) -> Outputs:
    x, scale, bias, mean, variance = (call.tensor(i) for i in range(5))
    eps, momentum = call.float_attribute("epsilon", 1e-5), call.float_attribute("momentum", 0.9)
    if call.int_attribute("training_mode", 0):
        made = call.emit(ops.batch_norm_in_training, x, scale, bias, mean, variance, eps, momentum)
        return call.outputs_of(made, 3)
    return call.emit(aten.batch_norm.default, x, scale, bias, mean, variance, False, 1.0 - momentum, eps, False)


def lp_normalization(call: Call) -> Outputs:
    return call.emit(ops.lp_normalize, call.tensor(0), call.int_attribute("axis", -1), call.int_attribute("p", 2))


def lrn(call: Call) -> Outputs:
    alpha, beta, bias = (
        call.float_attribute("alpha", 0.0001),
        call.float_attribute("beta", 0.75),
        call.float_attribute("bias", 1.0),
    )
    return call.emit(ops.local_response_norm, call.tensor(0), call.int_attribute("size", 1), alpha, beta, bias)


def mean_variance(call: Call) -> Outputs:
    return call.emit(ops.mean_variance_norm, call.tensor(0), call.ints_attribute("axes") or [0, 2, 3])


NORM_RULES: dict[str, Rule] = {
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LRN": lrn,
    "LayerNormalization": layer_normalization,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance,
    "RMSNormalization": rms_normalization,
}
