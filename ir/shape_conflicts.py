"""Branches and loop bodies that cannot run, because an operator in them does not fit the shapes of its operands.

Exporters leave them behind, guarded by a condition. A runtime that learns those shapes refuses to load the model,
whether or not it ever comes there; and it learns them from recorded shapes, folded shape arithmetic, new constants.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import onnx_ir
from opgraft.ir.program import DEFAULT_DOMAINS, Program, direct_subgraphs, is_op

if TYPE_CHECKING:
    from opgraft.ir.shapes import ShapeAnalysis


def find_conflict(program: Program, facts: ShapeAnalysis) -> onnx_ir.Node | None:
    """A node that does not fit the shapes of its operands, in a graph that may be run for all that is known."""
    for node in program.graph:
        for graph in _inner_graphs(node, facts):
            for inner in graph:
                if _conflicts(inner, program.opset, facts):
                    return inner
    return None


def _inner_graphs(node: onnx_ir.Node, facts: ShapeAnalysis) -> Iterator[onnx_ir.Graph]:
    """The subgraphs of a node and those in them, without branches that are known not to be taken."""
    if not node.attributes:
        return
    never = ""
    if is_op(node, "If"):
        condition = facts.static_content(node.inputs[0])
        if condition is not None and len(condition) == 1:
            never = "else_branch" if condition[0] else "then_branch"
    skipped = node.attributes.get(never)
    for graph in direct_subgraphs(node):
        if skipped is None or skipped.is_ref() or graph is not skipped.as_graph():
            yield graph
            for inner in graph:
                yield from _inner_graphs(inner, facts)


def _conflicts(node: onnx_ir.Node, opset: int, facts: ShapeAnalysis) -> bool:
    """Whether the standard's own inference refuses the node with these shapes and takes it without them."""
    import onnx

    if node.domain not in DEFAULT_DOMAINS or not onnx.defs.has(node.op_type, opset, ""):
        return False
    if any(a.is_ref() or a.type in _GRAPHS for a in node.attributes.values()):
        return False
    types = {f"i{i}": facts.dtype(v) for i, v in enumerate(node.inputs) if v is not None}
    shapes = {f"i{i}": _dims(v, facts) for i, v in enumerate(node.inputs) if v is not None}
    if not any(shapes.values()) or None in types.values():
        return False
    proto = onnx.NodeProto(op_type=node.op_type)
    proto.input.extend("" if v is None else f"i{i}" for i, v in enumerate(node.inputs))
    proto.output.extend(f"o{i}" for i in range(len(node.outputs)))
    proto.attribute.extend(onnx_ir.to_proto(a) for a in node.attributes.values())
    contents = {f"i{i}": tensor for i, v in enumerate(node.inputs) if (tensor := _content(v, facts)) is not None}
    return _is_refused(proto, opset, types, shapes, contents) and not _is_refused(proto, opset, types, {}, {})


_GRAPHS = (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS)


def _is_refused(
    proto: Any, opset: int, types: dict[str, Any], shapes: dict[str, list[int | None] | None], contents: dict[str, Any]
) -> bool:
    import onnx.shape_inference

    operands = {name: onnx.helper.make_tensor_type_proto(int(dtype), shapes.get(name)) for name, dtype in types.items()}
    try:
        onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(proto.op_type, opset, ""),
            proto,
            operands,
            contents,
            opset_imports=[onnx.helper.make_opsetid("", opset)],
        )
    except onnx.shape_inference.InferenceError:
        return True
    return False


def _dims(value: onnx_ir.Value, facts: ShapeAnalysis) -> list[int | None] | None:
    """The dims that are numbers; None when the rank is unknown."""
    shape = facts.shape(value)
    return None if shape is None else [d if isinstance(d, int) else None for d in shape]


def _content(value: onnx_ir.Value | None, facts: ShapeAnalysis) -> Any:
    """The known elements of a small operand, as a tensor message."""
    import onnx.numpy_helper

    found = facts.integers(value)
    array = found.array() if found is not None else None
    return None if array is None else onnx.numpy_helper.from_array(array)
