"""Shape arithmetic that is known, at least symbolically, before the model runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir
from opgraft.ir.program import constant_tensor, is_op
from opgraft.ir.shapes import Extents, ShapeAnalysis, analyze_shapes
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter, can_stand_for
from opgraft.passes._worklist import NodePass


@dataclass(frozen=True)
class FoldShapes(NodePass):
    """Reshape(x, Concat(Gather(Shape(x), 0), ...)) -> Reshape(x, [0, -1, ...]); Shape(x) of known dims -> constant

    1. An integer tensor whose elements are all known becomes an initializer.
    2. A Reshape target becomes `0` where it copies the input's dim and `-1` where one dim remains.
    3. An Expand to the shape that its input has disappears.
    Named dims are taken to be at least one: `-1` beside a dim of size zero is an error in ONNX Runtime.
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = (
        *("Shape", "Size", "Gather", "Slice", "Concat", "Cast", "Unsqueeze", "Squeeze", "Identity"),
        *("Add", "Sub", "Mul", "Div", "Max", "Min", "Reshape", "Expand"),
    )

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        facts = shape_facts(context)
        if is_op(node, "Reshape") and node.outputs[0] not in facts.contents:
            return _reshape_target(node, op, facts)
        if is_op(node, "Expand"):
            return _no_expansion(node, facts)
        return _known_content(node, op, facts)


def shape_facts(context: PassContext) -> ShapeAnalysis:
    """The analysis, made again when something other than the current group changed the graph."""
    facts = context.facts.get("shapes")
    if facts is None:
        facts = context.facts["shapes"] = analyze_shapes(context.program)
    result: ShapeAnalysis = facts
    return result


def _known_content(node: onnx_ir.Node, op: Rewriter, facts: ShapeAnalysis) -> Replacement | NoMatch:
    output = node.outputs[0]
    content = facts.contents.get(output)
    if content is None:
        return NoMatch("the elements are not known", node)
    numbers = facts.static_content(output)
    if numbers is None:
        return NoMatch("the elements depend on symbolic dims", node)
    rank = _rank(node, facts)
    if rank is None or (rank == 0 and len(numbers) != 1) or rank > 1:
        return NoMatch("the rank is not known", node)
    if output.is_graph_output():
        return NoMatch("a graph output is computed", output)
    dtype = np.int32 if output.dtype == onnx_ir.DataType.INT32 else np.int64
    array = np.array(numbers, dtype=dtype).reshape(() if rank == 0 else (len(numbers),))
    return [op.constant(array, hint=f"{output.name or node.op_type}_folded")]


def _rank(node: onnx_ir.Node, facts: ShapeAnalysis) -> int | None:
    if is_op(node, "Shape"):
        return 1
    if is_op(node, "Size"):
        return 0
    shape = facts.shape(node.outputs[0])
    return len(shape) if shape is not None else None


def _reshape_target(node: onnx_ir.Node, op: Rewriter, facts: ShapeAnalysis) -> Replacement | NoMatch:
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return NoMatch("the target is an attribute", node)
    data, target = node.inputs
    if constant_tensor(target) is not None:
        return NoMatch("the target is constant already", node)
    content = facts.content(target)
    allowzero = node.attributes.get("allowzero")
    if content is None:
        return NoMatch("the target's length is not known", node)
    if allowzero is not None and allowzero.as_int():
        return NoMatch("allowzero gives 0 another meaning", node)
    numbers = target_form(facts.shape(data), content)
    if numbers is None:
        return NoMatch("more than one dim of the target is not known", node)
    name = f"{target.name}_folded" if target is not None and target.name else "target"
    constant = op.constant(np.array(numbers, dtype=np.int64), hint=name)
    return [op.op("Reshape", [data, constant], like=node.outputs[0])[0]]


def target_form(data: Extents | None, content: Extents) -> list[int] | None:
    """`content` as integers, 0 where it copies the dim of `data` at the same place, at most one -1; else None."""
    numbers: list[int] = []
    for index, size in enumerate(content):
        if isinstance(size, int):
            # A literal 0 already copies; a literal -1 already infers.
            numbers.append(size)
        elif size is not None and data is not None and index < len(data) and data[index] == size:
            numbers.append(0)
        else:
            numbers.append(-1)
    return numbers if numbers.count(-1) <= 1 else None


def _no_expansion(node: onnx_ir.Node, facts: ShapeAnalysis) -> Replacement | NoMatch:
    data, target = node.inputs
    shape, content = facts.shape(data), facts.content(target)
    if data is None or shape is None or content is None:
        return NoMatch("the shape or the target is not known", node)
    if len(content) > len(shape):
        return NoMatch("the target has more dims", node)
    kept = shape[len(shape) - len(content) :]
    same = all(size == 1 or (size is not None and size == extent) for size, extent in zip(content, kept, strict=True))
    if not same:
        return NoMatch("the target differs from the input's shape", node)
    refused = can_stand_for(data, node.outputs[0])
    return refused if refused is not None else [data]
