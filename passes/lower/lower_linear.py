"""Turn the canonical linear form into Gemm, for targets whose Gemm adds the bias and transposes while it multiplies."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.ir.program import is_op
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._weights import ROUNDABLE, check_literal, check_single_use, int_attribute
from opgraft.passes._worklist import NodePass


class LowerLinear(NodePass):
    """Add(MatMul(x, w), b) -> Gemm(x, w, b), for matrices

    1. Add of a bias to MatMul of two matrices, or to a Gemm without one.
    2. MatMul(Transpose(x), w) and MatMul(x, Transpose(w)).
    3. Gemm(Transpose(x), w, b) and Gemm(x, Transpose(w), b).
    """

    contract: ClassVar[Contract] = Contract.NUMERIC
    roots: ClassVar[tuple[str, ...]] = ("Add", "MatMul", "Gemm")

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        refused = check_literal(node) or _check_type(node)
        if refused is not None:
            return refused
        return _add_bias(node, op) if is_op(node, "Add") else _absorb_transposes(node, op)


def _check_type(node: onnx_ir.Node) -> NoMatch | None:
    types = [v.dtype for v in (*node.inputs, *node.outputs) if v is not None and v.dtype is not None]
    if not types or types[0] not in ROUNDABLE:
        return NoMatch("runtimes have Gemm for float32 and float64 only", node)
    return None


# 1. The bias


def _add_bias(node: onnx_ir.Node, op: Rewriter) -> Replacement | NoMatch:
    for product, bias in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        layer = product.producer() if product is not None else None
        if layer is not None and is_op(layer, "MatMul", "Gemm") and bias is not product:
            break
    else:
        return NoMatch("no operand is a product", node)
    if is_op(layer, "Gemm") and len(layer.inputs) > 2 and layer.inputs[2] is not None:
        return NoMatch("the product has a bias already", layer)
    refused = check_single_use(product, node) or check_literal(layer)
    refused = refused or (_check_matrices(layer) if is_op(layer, "MatMul") else None) or _check_bias(bias, layer)
    if refused is not None:
        return refused
    attributes = {name: a.value for name, a in layer.attributes.items() if name != "beta"}
    return op.op("Gemm", [*layer.inputs[:2], bias], **attributes)


def _check_matrices(layer: onnx_ir.Node) -> NoMatch | None:
    """The right operand must be known to be a matrix, and the left one, or the product, which then has its rank."""
    left, right = layer.inputs
    if not _is_matrix(right):
        return NoMatch("the right operand is not known to be a matrix", right)
    if not _is_matrix(left) and not _is_matrix(layer.outputs[0]):
        return NoMatch("the left operand is not known to be a matrix", left)
    return None


def _is_matrix(value: onnx_ir.Value | None) -> bool:
    return value is not None and value.shape is not None and len(value.shape) == 2


def _check_bias(bias: onnx_ir.Value | None, layer: onnx_ir.Node) -> NoMatch | None:
    """Gemm stretches its bias to [M, N]; it does not let the bias stretch the product."""
    weight = layer.inputs[1]
    if bias is None or bias.shape is None or weight is None or weight.shape is None:
        return NoMatch("the shape of the bias is not known", bias)
    dims = list(bias.shape)
    width = weight.shape[0 if int_attribute(layer, "transB", 0) else 1]
    fits = all(d == 1 for d in dims) or (dims[-1] == width and all(d == 1 for d in dims[:-1]))
    if len(dims) > 2 or not fits or (not isinstance(width, int) and any(d != 1 for d in dims)):
        return NoMatch("a bias of shape {} may stretch the product", bias, [str(d) for d in dims])
    return None


# 2 and 3. Transposed operands


def _absorb_transposes(node: onnx_ir.Node, op: Rewriter) -> Replacement | NoMatch:
    attributes = {name: a.value for name, a in node.attributes.items()}
    operands = list(node.inputs[:2])
    n_absorbed = 0
    for index, name in enumerate(("transA", "transB")):
        source = _transposed_matrix(operands[index])
        if source is not None:
            operands[index] = source
            attributes[name] = 0 if int_attribute(node, name, 0) else 1
            n_absorbed += 1
    if not n_absorbed:
        return NoMatch("no operand is a transposed matrix", node)
    if is_op(node, "MatMul"):
        refused = _check_matrices(node)
        if refused is not None:
            return refused
    return op.op("Gemm", [*operands, *node.inputs[2:]], **attributes)


def _transposed_matrix(value: onnx_ir.Value | None) -> onnx_ir.Value | None:
    producer = value.producer() if value is not None else None
    if producer is None or not is_op(producer, "Transpose") or check_literal(producer) is not None:
        return None
    source, permutation = producer.inputs[0], producer.attributes.get("perm")
    if not _is_matrix(source):
        return None
    return source if permutation is None or list(permutation.as_ints()) == [1, 0] else None
