"""Bring linear layers to their canonical form: MatMul with weights [in, out], then Add."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir
from opgraft.ir.program import constant_tensor, is_op
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._weights import (
    ROUNDABLE,
    ChannelView,
    check_factors,
    check_literal,
    dims_of,
    float_attribute,
    int_attribute,
    scale,
    transpose,
)
from opgraft.passes._worklist import NodePass


class CanonicalizeLinear(NodePass):
    """Gemm(x, w, b) -> Add(MatMul(x, alpha * w'), beta * b), w' [in, out]

    1. Gemm with constant weights; its own bias when beta is 1, a constant one otherwise.
    2. MatMul(x, Transpose(w)) with constant weights.
    """

    contract: ClassVar[Contract] = Contract.NUMERIC
    roots: ClassVar[tuple[str, ...]] = ("Gemm", "MatMul")

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        refused = check_literal(node)
        if refused is not None:
            return refused
        return _from_gemm(node, op) if is_op(node, "Gemm") else _from_transposed(node, op)


# 1. Gemm


def _from_gemm(node: onnx_ir.Node, op: Rewriter) -> Replacement | NoMatch:
    x, weight, bias = node.inputs[0], node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    tensor = constant_tensor(weight)
    if x is None or weight is None or tensor is None:
        return NoMatch("the weight is computed: this is no linear layer", node)
    alpha, beta = float_attribute(node, "alpha", 1.0), float_attribute(node, "beta", 1.0)
    refused = _check_numbers(node, tensor, alpha, beta, bias)
    if refused is not None:
        return refused
    if int_attribute(node, "transA", 0):
        x = op.Transpose(x, perm=[1, 0])
    operand = _weight(node, weight, tensor, alpha, op)
    product = op.op("MatMul", [x, operand], like=node.outputs[0])[0]
    if product.shape is None and operand.shape is not None:
        # Gemm says that it is a matrix, MatMul does not.
        product.type, product.shape = operand.type, onnx_ir.Shape([None, operand.shape[1]])
    if bias is None or beta == 0.0:
        return [product]
    if beta != 1.0:
        bias = op.constant(_scaled(constant_tensor(bias), beta), f"{bias.name}_scaled")
    return op.op("Add", [product, bias], like=node.outputs[0])


def _check_numbers(
    node: onnx_ir.Node, weight: onnx_ir.TensorProtocol, alpha: float, beta: float, bias: onnx_ir.Value | None
) -> NoMatch | None:
    if alpha == 0.0:
        return NoMatch("alpha is zero", node)
    has_factor = alpha != 1.0 or (beta not in (0.0, 1.0) and bias is not None)
    if has_factor and weight.dtype not in ROUNDABLE:
        return NoMatch("weights of type {} would be rounded once more", node, weight.dtype.name)
    if beta not in (0.0, 1.0) and bias is not None and constant_tensor(bias) is None:
        return NoMatch("the bias is computed and has a factor", node)
    return check_factors(np.asarray([alpha, beta]), node)


def _weight(
    node: onnx_ir.Node, value: onnx_ir.Value, tensor: onnx_ir.TensorProtocol, alpha: float, op: Rewriter
) -> onnx_ir.Value:
    if int_attribute(node, "transB", 0):
        return op.constant(transpose(tensor, alpha), f"{value.name}_transposed")
    return value if alpha == 1.0 else op.constant(_scaled(tensor, alpha), f"{value.name}_scaled")


def _scaled(tensor: onnx_ir.TensorProtocol | None, factor: float) -> onnx_ir.TensorProtocol:
    if tensor is None:
        raise ValueError("only a constant can be scaled")
    shape = dims_of(tensor) or (1,)
    return scale(tensor, ChannelView(shape, (1,) * len(shape)), np.full(1, factor))


# 2. Transposed weights


def _from_transposed(node: onnx_ir.Node, op: Rewriter) -> Replacement | NoMatch:
    right = node.inputs[1]
    transposition = right.producer() if right is not None else None
    if right is None or transposition is None or not is_op(transposition, "Transpose"):
        return NoMatch("the right operand is not transposed", node)
    refused = check_literal(transposition)
    tensor = constant_tensor(transposition.inputs[0])
    if refused is not None or tensor is None or len(tensor.shape) != 2:
        return refused or NoMatch("what is transposed is no constant matrix", transposition)
    permutation = transposition.attributes.get("perm")
    if permutation is not None and list(permutation.as_ints()) != [1, 0]:
        return NoMatch("the transposition does nothing", transposition)
    weight = op.constant(transpose(tensor), f"{right.name}_constant")
    return op.op("MatMul", [node.inputs[0], weight], like=node.outputs[0])
