"""Where the exporter's graph computes something else than the module: mended in captures, where torch is the truth.

An `.onnx` file is its own truth and is never passed through here.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from opgraft.ir.normalize_export import model_graphs


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
            # A new constant: the old one may serve other nodes.
            tensor = ir.tensor(np.full(fill.shape.numpy(), -np.inf, dtype=fill.numpy().dtype), dtype=fill.dtype)
            constant = ir.Node("", "Constant", [], {"value": ir.AttrTensor("value", tensor)})
            constant.metadata_props.update(node.metadata_props)
            graph.insert_before(node, constant)
            node.replace_input_with(2, constant.outputs[0])
            mended += 1
    return mended


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
