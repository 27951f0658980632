"""Where the exporter's graph computes something else than the module: mended in captures, where torch is the truth.

An `.onnx` file is its own truth and is never passed through here.
"""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
from opgraft.ir.normalize_export import model_graphs

# Not the digits of a name such as `%view_10`.
_NUMBER = re.compile(r"(?<![%\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.])")


def repair_masked_rows(model: ir.Model) -> int:
    """Boolean attention masks: fill with -inf instead of the lowest finite number; returns how many were mended.

    scaled_dot_product_attention gives zeros for a query that may see no key at all (left padding). torch 2.13
    translates it below opset 23 to

        bias = Where(mask, 0, -3.4028e38);  p = Softmax(scores + bias);  p = Where(IsNaN(p), 0, p)

    which gives such a query the mean of all values: the guard waits for the NaN that only -inf brings. On every
    other row both fills leave the same bits, since exp of either is zero.
    """
    mended = 0
    for graph in model_graphs(model):
        for node in list(graph):
            if not _is_guarded_bias(node):
                continue
            value = node.inputs[2]
            fill = ir.convenience.get_const_tensor(value) if value is not None else None
            if fill is None:
                continue
            tensor = ir.tensor(np.full(fill.shape.numpy(), -np.inf, dtype=fill.numpy().dtype), dtype=fill.dtype)
            _replace_by_constant(node, 2, tensor)
            mended += 1
    return mended


def repair_narrowed_numbers(model: ir.Model) -> int:
    """Python numbers of float64 operators: write them in float64; returns how many were mended.

    torch 2.13 makes a float32 constant of a number and casts it to the type of the tensor: a lowest float64 that masks
    scores arrives as -inf, which makes NaN of a row that is masked as a whole, and 0.044715 as 0.04471499845. The
    number is taken from the record of the call, where one and only one rounds to the constant.
    """
    mended = 0
    for graph in model_graphs(model):
        for node in list(graph):
            narrow = node.inputs[0] if node.op_type in ("Cast", "CastLike") else None
            constant = ir.convenience.get_const_tensor(narrow) if narrow is not None else None
            if constant is None or constant.dtype != ir.DataType.FLOAT or constant.size != 1 or not _is_double(node):
                continue
            number = _number_of_call(node, float(constant.numpy().item()))
            if number is not None:
                exact = ir.tensor(np.full(constant.shape.numpy(), number, dtype=np.float64))
                _replace_by_constant(node, 0, exact)
                mended += 1
    return mended


def repair_missing_bias(model: ir.Model) -> int:
    """Convolutions without a bias: none, instead of zeros that the runtime refuses; returns how many were mended.

    torch 2.13 writes Expand(0, [M, stride]) as the bias of a Conv3d without one, where only [M] is a bias.
    """
    mended = 0
    for graph in model_graphs(model):
        for node in graph:
            bias = node.inputs[2] if node.op_type == "Conv" and len(node.inputs) > 2 else None
            expand = bias.producer() if bias is not None else None
            if expand is None or expand.op_type != "Expand" or not _is_zero(expand.inputs[0]):
                continue
            shape = expand.inputs[1].producer() if expand.inputs[1] is not None else None
            if shape is None or shape.op_type != "Concat" or len(shape.inputs) < 2:
                continue
            node.resize_inputs(2)
            mended += 1
    return mended


def _is_zero(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type in ("Cast", "CastLike"):
        value = producer.inputs[0]
    number = ir.convenience.get_const_tensor(value) if value is not None else None
    return number is not None and not number.numpy().any()


def _is_double(cast: ir.Node) -> bool:
    if cast.op_type == "Cast":
        to = cast.attributes.get_int("to", 0)
        return to == ir.DataType.DOUBLE
    like = cast.inputs[1]
    return like is not None and like.dtype == ir.DataType.DOUBLE


def _number_of_call(node: ir.Node, rounded: float) -> float | None:
    """The only number of the torch call that float32 rounds to `rounded` and does not hold; None if there is none."""
    arguments = _fx_text(node).partition("](args = ")[2]
    with np.errstate(over="ignore"):
        found = {n for n in map(float, _NUMBER.findall(arguments)) if n != rounded and float(np.float32(n)) == rounded}
    return found.pop() if len(found) == 1 else None


def _replace_by_constant(node: ir.Node, position: int, tensor: ir.TensorProtocol) -> None:
    """With a new constant: the old one may serve other nodes."""
    constant = ir.Node("", "Constant", [], {"value": ir.AttrTensor("value", tensor)})
    constant.metadata_props.update(node.metadata_props)
    if (graph := node.graph) is not None:
        graph.insert_before(node, constant)
    node.replace_input_with(position, constant.outputs[0])


def _is_guarded_bias(node: ir.Node) -> bool:
    """Where(mask, 0, lowest) from an SDPA call, whose only way leads through Add and Softmax to the NaN guard."""
    if node.op_type != "Where" or "scaled_dot_product" not in _fx_text(node):
        return False
    zero, fill = (ir.convenience.get_const_tensor(value) if value is not None else None for value in node.inputs[1:])
    if zero is None or fill is None or not fill.dtype.is_floating_point():
        return False
    if zero.numpy().any() or not (fill.numpy() == fill.dtype.min).all():
        return False
    add = _only_user(node, "Add")
    softmax = _only_user(add, "Softmax") if add is not None else None
    return softmax is not None and any(user.op_type == "IsNaN" for user, _ in softmax.outputs[0].uses())


def _only_user(node: ir.Node, op_type: str) -> ir.Node | None:
    users = [user for user, _ in node.outputs[0].uses()]
    is_alone = len(users) == 1 and not node.outputs[0].is_graph_output()
    return users[0] if is_alone and users[0].op_type == op_type else None


def _fx_text(node: ir.Node) -> str:
    return node.metadata_props.get("pkg.torch.onnx.fx_node", "")
