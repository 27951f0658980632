"""Put constant factors and summands around a linear operator into its weights."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir
from opgraft.ir.program import constant_array, constant_tensor, is_op
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._weights import (
    ROUNDABLE,
    channel_bias,
    check_factors,
    check_literal,
    check_single_use,
    dims_of,
    float_attribute,
    input_channels,
    int_attribute,
    output_channels,
    round_to,
    scale,
)
from opgraft.passes._worklist import NodePass

_LINEAR = ("Conv", "ConvTranspose", "Gemm")


class FuseConvAffine(NodePass):
    """Conv(x, w, b) * c + d -> Conv(x, w * c, b * c + d)

    1. Mul, Div, Add, Sub of one constant per output channel, or of one number, after Conv, ConvTranspose or Gemm.
    2. Mul and Div of one constant per input channel, or of one number, before them: padding zeros stay zeros.

    A summand before the operator stays: with padding it would be added to the padding too, and without it the small
    result of a cancellation in `x + d` would become the difference of two large sums.
    """

    contract: ClassVar[Contract] = Contract.NUMERIC
    roots: ClassVar[tuple[str, ...]] = ("Mul", "Div", "Add", "Sub", *_LINEAR)
    partners: ClassVar[tuple[str, ...]] = _LINEAR

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        if is_op(node, *_LINEAR):
            return _fuse_before(node, op)
        return _fuse_after(node, op)


# 1. After the operator


def _fuse_after(node: onnx_ir.Node, op: Rewriter) -> Replacement | NoMatch:
    left, right = node.inputs
    if left is not None and is_op(left.producer(), *_LINEAR):
        value, other, is_left = left, right, True
    elif right is not None and is_op(right.producer(), *_LINEAR):
        value, other, is_left = right, left, False
    else:
        return NoMatch("no operand is the result of Conv, ConvTranspose or Gemm", node)
    layer = value.producer()
    refused = check_single_use(value, node) or (_check_weight(layer) if layer is not None else None)
    if layer is None or refused is not None:
        return refused or NoMatch("the operand has no producer", node)
    n_channels = output_channels(layer, _weight_dims(layer)).n_channels
    numbers = _per_channel(other, n_channels, len(_weight_dims(layer)), node)
    if isinstance(numbers, NoMatch):
        return numbers
    affine = _affine(node.op_type, numbers, is_left)
    if affine is None:
        return NoMatch("the constant is divided by the result, or the result by zero", node)
    return _rebuild(layer, op, *affine)


def _affine(op_type: str, numbers: np.ndarray, is_left: bool) -> tuple[np.ndarray | None, np.ndarray | None] | None:
    """(factor, summand) of `result op numbers`, or of `numbers op result` unless `is_left`."""
    if op_type == "Mul":
        return numbers, None
    if op_type == "Add":
        return None, numbers
    if op_type == "Sub":
        return (None, -numbers) if is_left else (np.full(1, -1.0), numbers)
    return (1.0 / numbers, None) if is_left and (numbers != 0).all() else None


def _rebuild(
    layer: onnx_ir.Node, op: Rewriter, factor: np.ndarray | None, summand: np.ndarray | None
) -> Replacement | NoMatch:
    weight, n_channels = layer.inputs[1], output_channels(layer, _weight_dims(layer)).n_channels
    tensor = constant_tensor(weight)
    if weight is None or tensor is None:
        return NoMatch("the weight is computed", layer)
    old_bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    bias = channel_bias(old_bias, n_channels, layer)
    if isinstance(bias, NoMatch):
        return bias
    bias = bias * float_attribute(layer, "beta", 1.0) if is_op(layer, "Gemm") else bias
    new_weight = weight
    if factor is not None:
        refused = check_factors(factor, layer)
        if refused is not None:
            return refused
        bias = bias * factor
        scaled = scale(tensor, output_channels(layer, dims_of(tensor)), factor)
        new_weight = op.constant(scaled, f"{weight.name}_scaled")
    bias = bias if summand is None else bias + summand
    inputs = [layer.inputs[0], new_weight]
    if old_bias is not None or summand is not None:
        rounded = round_to(np.broadcast_to(bias, (n_channels,)), tensor.dtype)
        if not np.isfinite(rounded).all():
            return NoMatch("the new bias is not finite", layer)
        inputs.append(op.constant(rounded, f"{layer.name or layer.outputs[0].name}_bias"))
    attributes = {name: a.value for name, a in layer.attributes.items() if name != "beta"}
    return op.op(layer.op_type, inputs, **attributes)


# 2. Before the operator


def _fuse_before(layer: onnx_ir.Node, op: Rewriter) -> Replacement | NoMatch:
    scaled = layer.inputs[0]
    node = scaled.producer() if scaled is not None else None
    if node is None or not is_op(node, "Mul", "Div", "Add", "Sub"):
        return NoMatch("the input is not scaled", layer)
    if not is_op(node, "Mul", "Div"):
        return NoMatch("a summand before the operator would be added to padding, or cancel later", node)
    refused = check_single_use(scaled, layer) or _check_weight(layer)
    if refused is not None:
        return refused
    return _scale_inputs(layer, node, op)


def _scale_inputs(layer: onnx_ir.Node, node: onnx_ir.Node, op: Rewriter) -> Replacement | NoMatch:
    x, other = node.inputs
    if constant_array(other) is None and is_op(node, "Mul"):
        x, other = other, x
    weight = layer.inputs[1]
    tensor = constant_tensor(weight)
    if x is None or weight is None or tensor is None:
        return NoMatch("the weight is computed", layer)
    channels, rank = input_channels(layer, dims_of(tensor)), len(tensor.shape)
    last = is_op(layer, "Gemm")
    numbers = _per_channel(other, channels.n_channels, rank, node, axis=rank - 1 if last else 1)
    if isinstance(numbers, NoMatch):
        return numbers
    refused = _check_not_broadcast(x, other, numbers.size, rank, rank - 1 if last else 1)
    if refused is not None:
        return refused
    if numbers.size > 1 and last and int_attribute(layer, "transA", 0):
        return NoMatch("the input is transposed", layer)
    if is_op(node, "Div"):
        if not (numbers != 0).all():
            return NoMatch("the input is divided by zero", node)
        numbers = 1.0 / numbers
    refused = check_factors(numbers, node)
    if refused is not None:
        return refused
    new_weight = op.constant(scale(tensor, channels, numbers), f"{weight.name}_scaled")
    attributes = {name: a.value for name, a in layer.attributes.items()}
    return op.op(layer.op_type, [x, new_weight, *layer.inputs[2:]], **attributes)


def _check_not_broadcast(
    x: onnx_ir.Value, other: onnx_ir.Value | None, n_numbers: int, rank: int, axis: int
) -> NoMatch | None:
    """The multiplication must not be what gives `x` its rank or its channels."""
    if other is not None and other.shape is not None and len(other.shape) < rank and n_numbers == 1:
        return None
    if x.shape is None or len(x.shape) != rank:
        return NoMatch("the rank of the scaled input is not known to be {}", x, rank)
    if n_numbers > 1 and x.shape[axis] != n_numbers:
        return NoMatch("the input is not known to have {} channels", x, n_numbers)
    return None


# Both


def _check_weight(layer: onnx_ir.Node) -> NoMatch | None:
    tensor = constant_tensor(layer.inputs[1])
    if tensor is None:
        return NoMatch("the weight is computed", layer)
    if tensor.dtype not in ROUNDABLE:
        return NoMatch("weights of type {} would be rounded once more", layer, tensor.dtype.name)
    return check_literal(layer)


def _weight_dims(layer: onnx_ir.Node) -> tuple[int, ...]:
    tensor = constant_tensor(layer.inputs[1])
    return dims_of(tensor) if tensor is not None else ()


def _per_channel(
    value: onnx_ir.Value | None, n_channels: int, rank: int, node: onnx_ir.Node, axis: int = 1
) -> np.ndarray | NoMatch:
    """A constant that differs along `axis` of a tensor of `rank` only: float64, [n_channels] or [1]."""
    array = constant_array(value)
    if array is None:
        return NoMatch("the other operand is computed", node)
    if array.ndim > rank or not array.size:
        return NoMatch("a constant of shape {} changes the shape", node, list(array.shape))
    shape = (1,) * (rank - array.ndim) + array.shape
    wanted = tuple(n_channels if i == axis else 1 for i in range(rank))
    if array.size > 1 and shape != wanted:
        return NoMatch("a constant of shape {} is not one number per channel", node, list(array.shape))
    return array.astype(np.float64).reshape(-1)
