"""Put inference batch normalization into the weights before it."""

from __future__ import annotations

from dataclasses import dataclass
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
    int_attribute,
    output_channels,
    round_to,
    scale,
)
from opgraft.passes._worklist import NodePass

_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class FuseConvBatchNorm(NodePass):
    """BatchNormalization(Conv(x, w, b)) -> Conv(x, w * k, (b - mean) * k + bias), k = scale / sqrt(var + epsilon)

    1. Conv [M, C/g, ...] and ConvTranspose [C, M/g, ...], with groups.
    2. Gemm: its bias is `beta * C`.
    3. MatMul of two matrices, with or without Add of a bias: it becomes MatMul and Add.
    """

    contract: ClassVar[Contract] = Contract.NUMERIC
    roots: ClassVar[tuple[str, ...]] = ("BatchNormalization",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        refused = _check_inference(node)
        if refused is not None:
            return refused
        layer = _find_layer(node)
        if isinstance(layer, NoMatch):
            return layer
        statistics = _statistics(node, layer.n_channels)
        if isinstance(statistics, NoMatch):
            return statistics
        factors, mean, shift = statistics
        weight = scale(layer.weight, output_channels(layer.node, dims_of(layer.weight)), factors)
        bias = round_to((layer.bias - mean) * factors + shift, layer.weight.dtype)
        if not np.isfinite(bias).all():
            return NoMatch("the new bias is not finite", node)
        return [_rebuild(layer, op, weight, bias)]


@dataclass(frozen=True)
class _Layer:
    """The linear operator whose only user is the normalization."""

    node: onnx_ir.Node
    weight: onnx_ir.TensorProtocol
    bias: np.ndarray
    """[M] or [1], float64; zero where there is none."""
    n_channels: int


def _check_inference(node: onnx_ir.Node) -> NoMatch | None:
    refused = check_literal(node)
    if refused is not None:
        return refused
    if int_attribute(node, "training_mode", 0):
        return NoMatch("the normalization is in training mode", node)
    if not int_attribute(node, "spatial", 1):
        return NoMatch("statistics are per element, not per channel", node)
    if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        return NoMatch("the running statistics are used", node)
    return None


def _find_layer(norm: onnx_ir.Node) -> _Layer | NoMatch:
    value = norm.inputs[0]
    refused = check_single_use(value, norm)
    if refused is not None:
        return refused
    producer = value.producer() if value is not None else None
    added: onnx_ir.Value | None = None
    if producer is not None and is_op(producer, "Add"):
        for product, other in (tuple(producer.inputs), tuple(producer.inputs)[::-1]):
            if product is not None and is_op(product.producer(), "MatMul"):
                refused = check_single_use(product, producer)
                if refused is not None:
                    return refused
                producer, added = product.producer(), other
                break
    if producer is None or not is_op(producer, *_LINEAR):
        return NoMatch("the input is not the result of Conv, ConvTranspose, Gemm or MatMul", norm)
    return _describe_layer(producer, added, norm)


def _describe_layer(node: onnx_ir.Node, added: onnx_ir.Value | None, norm: onnx_ir.Node) -> _Layer | NoMatch:
    weight = constant_tensor(node.inputs[1])
    if weight is None:
        return NoMatch("the weight is computed", node)
    refused = check_literal(node)
    if refused is not None:
        return refused
    if weight.dtype not in ROUNDABLE:
        return NoMatch("weights of type {} would be rounded once more", node, weight.dtype.name)
    if is_op(node, "MatMul"):
        left = node.inputs[0]
        if len(weight.shape) != 2 or left is None or left.shape is None or len(left.shape) != 2:
            return NoMatch("axis 1 is the channel of a product of matrices only", node)
    n_channels = output_channels(node, dims_of(weight)).n_channels
    source = added if is_op(node, "MatMul") else (node.inputs[2] if len(node.inputs) > 2 else None)
    bias = channel_bias(source, n_channels, node)
    if isinstance(bias, NoMatch):
        return bias
    if is_op(node, "Gemm"):
        bias = bias * float_attribute(node, "beta", 1.0)
    return _Layer(node, weight, bias, n_channels)


def _statistics(norm: onnx_ir.Node, n_channels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | NoMatch:
    """(factors, mean, shift), each [M] in float64."""
    arrays = []
    for value in norm.inputs[1:5]:
        array = constant_array(value)
        if array is None:
            return NoMatch("scale, bias, mean and variance must be constants", value)
        if array.shape != (n_channels,):
            return NoMatch("a statistic has shape {}, not one number per channel", value, list(array.shape))
        arrays.append(array.astype(np.float64))
    gain, shift, mean, variance = arrays
    spread = variance + float_attribute(norm, "epsilon", 1e-5)
    if not (spread > 0).all():
        return NoMatch("variance + epsilon is not positive", norm)
    factors = gain / np.sqrt(spread)
    return check_factors(factors, norm) or (factors, mean, shift)


def _rebuild(layer: _Layer, op: Rewriter, weight: onnx_ir.TensorProtocol, bias: np.ndarray) -> onnx_ir.Value:
    node = layer.node
    x, new_weight = node.inputs[0], op.constant(weight, f"{node.inputs[1].name}_scaled")  # type: ignore[union-attr]
    new_bias = op.constant(bias, f"{node.name or node.outputs[0].name}_bias")
    attributes = {name: a.value for name, a in node.attributes.items() if name != "beta"}
    if is_op(node, "MatMul"):
        return op.op("Add", [op.op("MatMul", [x, new_weight], like=node.outputs[0])[0], new_bias])[0]
    return op.op(node.op_type, [x, new_weight, new_bias], **attributes)[0]
