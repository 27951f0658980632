"""FX rules of elementwise operators: arithmetic, comparison, logic, bits, casts and activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from opgraft.ir.fx import ops_elementwise as ops
from opgraft.ir.fx.call import Call, Outputs, Rule
from opgraft.ir.fx.values import SMALL_INTEGERS, WIDE_UNSIGNED, DataType, FxValue
from torch import fx

aten = torch.ops.aten
functional = torch.nn.functional

_FLOAT8 = (DataType.FLOAT8E4M3FN, DataType.FLOAT8E4M3FNUZ, DataType.FLOAT8E5M2, DataType.FLOAT8E5M2FNUZ)


def unary(target: Callable[..., Any]) -> Rule:
    return lambda call: call.emit(target, call.tensor(0))


def _arithmetic(target: Callable[..., Any]) -> Rule:
    """Two operands of one type."""

    def rule(call: Call) -> Outputs:
        if call.dtype(0) in WIDE_UNSIGNED:
            dtype = call.torch_dtype(0)
            return call.emit(ops.widened, target, call.tensor(0), call.tensor(1), dtype=dtype)
        return call.emit(target, call.tensor(0), call.operand(1))

    return rule


def div(call: Call) -> Outputs:
    if call.dtype(0) == DataType.UINT64:
        return call.emit(ops.divide_uint64, call.tensor(0), call.tensor(1))
    if not call.is_integer():
        return _arithmetic(aten.div.Tensor)(call)
    if call.dtype(0) in WIDE_UNSIGNED:
        return call.emit(
            ops.widened, aten.floor_divide.default, call.tensor(0), call.tensor(1), dtype=call.torch_dtype(0)
        )
    return call.emit(aten.div.Tensor_mode, call.tensor(0), call.tensor(1), rounding_mode="trunc")


def mod(call: Call) -> Outputs:
    if call.dtype(0) == DataType.UINT64:
        return call.emit(ops.remainder_uint64, call.tensor(0), call.tensor(1))
    if not call.is_integer() and not call.int_attribute("fmod", 0):
        return call.emit(ops.floored_remainder, call.tensor(0), call.tensor(1))
    return _arithmetic(aten.fmod.Tensor if call.int_attribute("fmod", 0) else aten.remainder.Tensor)(call)


def pow_(call: Call) -> Outputs:
    base, exponent = call.dtype(0), call.dtype(1)
    if base == exponent and base is not None and base.is_floating_point():
        number = call.operand(1)
        target = aten.pow.Tensor_Tensor if isinstance(number, fx.Node) else aten.pow.Tensor_Scalar
        return call.emit(target, call.tensor(0), number)
    if base in WIDE_UNSIGNED:
        return call.emit(ops.widened, ops.power, call.tensor(0), call.tensor(1), dtype=call.torch_dtype(0))
    return call.emit(ops.power, call.tensor(0), call.tensor(1))


def variadic(target: Callable[..., Any], *, ordered: bool = False) -> Rule:
    """Folded from the left; `ordered` ones need care with unsigned integers."""

    def rule(call: Call) -> Outputs:
        parts = call.tensors()
        total = parts[0]
        for part in parts[1:]:
            if call.dtype(0) == DataType.UINT64 and ordered:
                total = call.emit(ops.extreme, target, total, part)
            elif call.dtype(0) in WIDE_UNSIGNED:
                total = call.emit(ops.widened, target, total, part, dtype=call.torch_dtype(0))
            else:
                total = call.emit(target, total, part)
        return total if len(parts) > 1 else call.value(0)

    return rule


def mean(call: Call) -> Outputs:
    return call.emit(ops.mean, *call.tensors())


def _comparison(target: Callable[..., Any]) -> Rule:
    def rule(call: Call) -> Outputs:
        if call.dtype(0) in WIDE_UNSIGNED:
            return call.emit(ops.compare, target, call.tensor(0), call.tensor(1))
        return call.emit(target, call.tensor(0), call.tensor(1))

    return rule


def bit_shift(call: Call) -> Outputs:
    left = call.text_attribute("direction", "") == "LEFT"
    if call.dtype(0) == DataType.UINT64 and not left:
        return call.emit(ops.shift_right_uint64, call.tensor(0), call.tensor(1))
    return _arithmetic(aten.bitwise_left_shift.Tensor if left else aten.bitwise_right_shift.Tensor)(call)


def bitwise_not(call: Call) -> Outputs:
    if call.dtype(0) in WIDE_UNSIGNED:
        return call.emit(ops.widened, aten.bitwise_not.default, call.tensor(0), dtype=call.torch_dtype(0))
    return call.emit(aten.bitwise_not.default, call.tensor(0))


def where(call: Call) -> Outputs:
    return call.emit(aten.where.self, call.tensor(0), call.tensor(1), call.tensor(2))


# -- casts -------------------------------------------------------------------------------------------------------------


def cast_to(call: Call, target: DataType | None) -> FxValue:
    source = call.dtype(0)
    if target is not None and source == target:
        return call.value(0)
    dtype = call.torch_type(target)
    x = call.tensor(0)
    if target in SMALL_INTEGERS:
        node = call.emit(ops.cast_to_small_integer, x, *SMALL_INTEGERS[target])
    elif target in _FLOAT8:
        node = call.emit(ops.cast_to_float8, x, dtype, bool(call.int_attribute("saturate", 1)))
    else:
        node = call.emit(aten.to.dtype, x, dtype)
    return call.result(node, target)


def cast(call: Call) -> Outputs:
    return cast_to(call, call.type_attribute("to"))


def cast_like(call: Call) -> Outputs:
    return cast_to(call, call.dtype(1))


def bit_cast(call: Call) -> Outputs:
    """The bits are those of the model's own types, whatever they are computed in otherwise."""
    source = call.source.inputs[0]
    own, target = source.dtype if source is not None else None, DataType(call.int_attribute("to", 0))
    x = call.tensor(0)
    if own is not None and own != call.dtype(0):
        x = call.emit(aten.to.dtype, x, call.torch_type(own))
    x = call.emit(aten.view.dtype, x, call.torch_type(target))
    wide = call.type_attribute("to")
    return call.result(x if wide == target else call.emit(aten.to.dtype, x, call.torch_type(wide)), wide)


# -- activations -------------------------------------------------------------------------------------------------------


def clip(call: Call) -> Outputs:
    bounds: list[Any] = [None, None]
    for index, name in ((1, "min"), (2, "max")):
        if name in call.attributes:
            bounds[index - 1] = call.float_attribute(name, 0.0)
        elif call.has(index):
            number = call.array(index)
            bounds[index - 1] = call.tensor(index) if number is None else number.reshape(-1)[0].item()
    if bounds == [None, None]:
        return call.value(0)
    if any(isinstance(b, fx.Node) for b in bounds) or call.dtype(0) in WIDE_UNSIGNED:
        return call.emit(ops.clip, call.tensor(0), *bounds)
    return call.emit(aten.clamp.default, call.tensor(0), *bounds)


def leaky_relu(call: Call) -> Outputs:
    return call.emit(aten.leaky_relu.default, call.tensor(0), call.float_attribute("alpha", 0.01))


def elu(call: Call) -> Outputs:
    return call.emit(aten.elu.default, call.tensor(0), call.float_attribute("alpha", 1.0))


def selu(call: Call) -> Outputs:
    alpha = call.float_attribute("alpha", 1.67326319217681884765625)
    return call.emit(aten.elu.default, call.tensor(0), alpha, call.float_attribute("gamma", 1.05070102214813232421875))


def celu(call: Call) -> Outputs:
    return call.emit(aten.celu.default, call.tensor(0), call.float_attribute("alpha", 1.0))


def gelu(call: Call) -> Outputs:
    return call.emit(aten.gelu.default, call.tensor(0), approximate=call.text_attribute("approximate", "none"))


def hard_sigmoid(call: Call) -> Outputs:
    return call.emit(
        ops.hard_sigmoid, call.tensor(0), call.float_attribute("alpha", 0.2), call.float_attribute("beta", 0.5)
    )


def thresholded_relu(call: Call) -> Outputs:
    return call.emit(ops.thresholded_relu, call.tensor(0), call.float_attribute("alpha", 1.0))


def shrink(call: Call) -> Outputs:
    return call.emit(ops.shrink, call.tensor(0), call.float_attribute("lambd", 0.5), call.float_attribute("bias", 0.0))


def swish(call: Call) -> Outputs:
    alpha = call.float_attribute("alpha", 1.0)
    return call.emit(aten.silu.default, call.tensor(0)) if alpha == 1.0 else call.emit(ops.swish, call.tensor(0), alpha)


def prelu(call: Call) -> Outputs:
    return call.emit(ops.prelu, call.tensor(0), call.tensor(1))


def is_inf(call: Call) -> Outputs:
    negative, positive = bool(call.int_attribute("detect_negative", 1)), bool(call.int_attribute("detect_positive", 1))
    if negative and positive:
        return call.emit(aten.isinf.default, call.tensor(0))
    return call.emit(ops.is_inf, call.tensor(0), negative, positive)


def dropout(call: Call) -> Outputs:
    """In inference nothing is dropped; in training torch draws what is."""
    x = call.tensor(0)
    training = call.array(2) if call.has(2) else np.array(False)
    if training is not None and not bool(training):
        return [call.value(0), call.emit(torch.ones_like, x, dtype=torch.bool) if call.n_outputs > 1 else None]
    ratio = call.tensor(1) if call.has(1) else 0.5
    made = call.emit(ops.dropout, x, ratio, call.tensor(2))
    return call.outputs_of(made, 2)


_UNARY: dict[str, Callable[..., Any]] = {
    "Abs": aten.abs.default,
    "Acos": aten.acos.default,
    "Acosh": aten.acosh.default,
    "Asin": aten.asin.default,
    "Asinh": aten.asinh.default,
    "Atan": aten.atan.default,
    "Atanh": aten.atanh.default,
    "Ceil": aten.ceil.default,
    "Cos": aten.cos.default,
    "Cosh": aten.cosh.default,
    "Det": torch.linalg.det,
    "Erf": aten.erf.default,
    "Exp": aten.exp.default,
    "Floor": aten.floor.default,
    "HardSwish": ops.hard_swish,
    "IsNaN": aten.isnan.default,
    "Log": aten.log.default,
    "Mish": aten.mish.default,
    "Neg": aten.neg.default,
    "Not": aten.logical_not.default,
    "Reciprocal": aten.reciprocal.default,
    "Relu": aten.relu.default,
    "Round": aten.round.default,
    "Sigmoid": aten.sigmoid.default,
    "Sign": aten.sign.default,
    "Sin": aten.sin.default,
    "Sinh": aten.sinh.default,
    "Softplus": ops.softplus,
    "Softsign": functional.softsign,
    "Sqrt": aten.sqrt.default,
    "Tan": aten.tan.default,
    "Tanh": aten.tanh.default,
}

ELEMENTWISE_RULES: dict[str, Rule] = {
    **{name: unary(target) for name, target in _UNARY.items()},
    "Add": _arithmetic(aten.add.Tensor),
    "And": _comparison(aten.logical_and.default),
    "BitCast": bit_cast,
    "BitShift": bit_shift,
    "BitwiseAnd": _arithmetic(aten.bitwise_and.Tensor),
    "BitwiseNot": bitwise_not,
    "BitwiseOr": _arithmetic(aten.bitwise_or.Tensor),
    "BitwiseXor": _arithmetic(aten.bitwise_xor.Tensor),
    "Cast": cast,
    "CastLike": cast_like,
    "Celu": celu,
    "Clip": clip,
    "Div": div,
    "Dropout": dropout,
    "Elu": elu,
    "Equal": _comparison(aten.eq.Tensor),
    "Gelu": gelu,
    "Greater": _comparison(aten.gt.Tensor),
    "GreaterOrEqual": _comparison(aten.ge.Tensor),
    "HardSigmoid": hard_sigmoid,
    "IsInf": is_inf,
    "LeakyRelu": leaky_relu,
    "Less": _comparison(aten.lt.Tensor),
    "LessOrEqual": _comparison(aten.le.Tensor),
    "Max": variadic(aten.maximum.default, ordered=True),
    "Mean": mean,
    "Min": variadic(aten.minimum.default, ordered=True),
    "Mod": mod,
    "Mul": _arithmetic(aten.mul.Tensor),
    "Or": _comparison(aten.logical_or.default),
    "PRelu": prelu,
    "Pow": pow_,
    "Selu": selu,
    "Shrink": shrink,
    "Sub": _arithmetic(aten.sub.Tensor),
    "Sum": variadic(aten.add.Tensor),
    "Swish": swish,
    "ThresholdedRelu": thresholded_relu,
    "Where": where,
    "Xor": _comparison(aten.logical_xor.default),
}
