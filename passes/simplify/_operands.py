"""Reading a node's operands and attributes: at every opset, in attribute form and in input form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir
from opgraft.ir.program import constant_ints, constant_tensor, is_op
from opgraft.passes._pass import NoMatch, PassContext
from opgraft.passes._rewriter import Rewriter


def operand(node: onnx_ir.Node, index: int) -> onnx_ir.Value | None:
    """The input at `index`, or None when the node has none there."""
    return node.inputs[index] if index < len(node.inputs) else None


def int_attribute(node: onnx_ir.Node, name: str, default: int | None = None) -> int | None:
    """The attribute or its default; None also when the attribute is a function's parameter."""
    attribute = node.attributes.get(name)
    if attribute is None:
        return default
    return None if attribute.is_ref() else int(attribute.value)


def ints_attribute(node: onnx_ir.Node, name: str) -> list[int] | None:
    attribute = node.attributes.get(name)
    if attribute is None or attribute.is_ref():
        return None
    return [int(i) for i in attribute.value]


def string_attribute(node: onnx_ir.Node, name: str, default: str) -> str | None:
    attribute = node.attributes.get(name)
    if attribute is None:
        return default
    return None if attribute.is_ref() else str(attribute.value)


def has_parameters(node: onnx_ir.Node) -> bool:
    """Whether an attribute is a parameter of the enclosing function, with another value at each call."""
    return any(a.is_ref() for a in node.attributes.values())


def ints_operand(node: onnx_ir.Node, name: str, index: int) -> list[int] | None:
    """Integers that are an attribute at old opsets and an input since; None when absent or not constant."""
    if name in node.attributes:
        return ints_attribute(node, name)
    return constant_ints(operand(node, index))


def has_operand(node: onnx_ir.Node, name: str, index: int) -> bool:
    return name in node.attributes or operand(node, index) is not None


def producer(
    value: onnx_ir.Value | None, graph: onnx_ir.Graph | onnx_ir.Function | None, *ops: str
) -> onnx_ir.Node | None:
    """The standard operator of one of these types whose first output is `value`, in `graph` (None: in any)."""
    node = value.producer() if value is not None else None
    if node is None or not is_op(node, *ops) or node.outputs[0] is not value:
        return None
    return node if graph is None or node.graph is graph else None


def is_single_use(value: onnx_ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def normalize_axes(axes: Sequence[int], rank: int | None) -> list[int] | None:
    """Axes counted from the front; None when that needs a rank that is not known, or an axis is out of range."""
    if any(a < 0 for a in axes):
        if rank is None:
            return None
        axes = [a + rank if a < 0 else a for a in axes]
    if any(a < 0 or (rank is not None and a >= rank) for a in axes):
        return None
    return list(axes)


def opset_of(node: onnx_ir.Node, context: PassContext) -> int:
    """The default-domain opset of the graph or function that holds `node`."""
    graph = node.graph
    known: dict[int, int] = context.facts.setdefault("opset-of-graph", {})
    found = known.get(id(graph))
    if found is None:
        model = context.program.model
        roots = [(model.graph, model.opset_imports)]
        roots += [(f.graph, f.opset_imports) for f in model.functions.values()]
        for root, imports in roots:
            version = imports.get("", imports.get("ai.onnx", context.program.opset))
            known[id(root)] = version
            known.update((id(sub), version) for sub in root.subgraphs())
        found = known.setdefault(id(graph), context.program.opset)
    return found


def axes_form(
    op: Rewriter, node: onnx_ir.Node, context: PassContext, axes: Sequence[int], since: int
) -> tuple[list[onnx_ir.Value], dict[str, list[int]]]:
    """`axes` as the extra inputs or the attributes that an operator takes whose axes became an input at `since`."""
    if opset_of(node, context) >= since:
        return [op.constant(np.array(axes, dtype=np.int64), "axes")], {}
    return [], {"axes": list(axes)}


def same_constant(left: onnx_ir.Value | None, right: onnx_ir.Value | None) -> bool:
    """Whether two operands hold the same value: one value, both absent, or constants of equal bytes."""
    if left is right:
        return True
    a, b = constant_tensor(left), constant_tensor(right)
    if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape or a.size > 4096:
        return False
    return a.dtype != onnx_ir.DataType.STRING and a.tobytes() == b.tobytes()


def refuse_parameters(node: onnx_ir.Node) -> NoMatch | None:
    if has_parameters(node):
        return NoMatch("an attribute is a parameter of the function", node)
    return None

