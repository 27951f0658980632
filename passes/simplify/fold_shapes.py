"""Shape arithmetic that is known, at least symbolically, before the model runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir
from opgraft.ir.dims import Dim, Size
from opgraft.ir.integer_contents import Integers
from opgraft.ir.integer_rules import INTEGER_OPERATORS
from opgraft.ir.program import constant_tensor, is_op
from opgraft.ir.shape_rules import ELEMENTWISE, SAME_SHAPE
from opgraft.ir.shapes import ShapeAnalysis, analyze_shapes, is_opaque
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter, can_stand_for
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._reshape_target import allows_zero, nonempty_dims, spell_expand, spell_reshape

# Of any type: what is folded is their second operand.
_TARGETED = ("Expand", "Reshape")
_FLOATS = (onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16, onnx_ir.DataType.DOUBLE)


@dataclass(frozen=True)
class FoldShapes(NodePass):
    """Reshape(x, Concat(Gather(Shape(x), 0), ...)) -> Reshape(x, [0, -1, ...]); Shape(x) of known dims -> constant

    1. An integer tensor whose elements are all numbers becomes a constant.
    2. One whose elements are those of an input of its node is that input.
    3. A Reshape target gets `0` where it copies the input's dim and `-1` where one dim remains.
    4. An Expand target gets `1` where the input has the size already; an Expand that changes nothing disappears.
    5. Shape(f(x)) reads Shape(x) where f keeps the shape.
    6. A single dim that the model names at one input only is read from that input.

    Dims of one name are one number, as the ONNX standard has it. (ONNX Runtime does not check inputs for that: where
    they break the rule it broadcasts if it can.) They may be 0, and `-1` beside a 0 is an error: case 3 writes `-1`
    only where the model itself fails on the 0, or where all else is a number.
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = (*INTEGER_OPERATORS, *_TARGETED)

    assume_nonempty: bool = False
    """Take all dims to be at least 1: more targets can be spelled with `-1`, and the result fails on empty inputs."""

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        dtype = node.outputs[0].dtype
        if dtype in _FLOATS and node.op_type not in _TARGETED:
            return NoMatch("no integers", node)
        facts = shape_facts(context)
        known = _known_content(node, op, facts)
        if not isinstance(known, NoMatch):
            return known
        if is_op(node, "Reshape"):
            return self._reshape(node, op, facts, context)
        if is_op(node, "Expand"):
            return _expand(node, op, facts)
        if is_op(node, "Shape"):
            return _earlier_shape(node, op, facts)
        if is_op(node, "Gather", "Slice"):
            return _dim_of_input(node, op, facts, context)
        return known

    def _reshape(
        self, node: onnx_ir.Node, op: Rewriter, facts: ShapeAnalysis, context: PassContext
    ) -> Replacement | NoMatch:
        if len(node.inputs) < 2 or node.inputs[1] is None:
            return NoMatch("the target is an attribute", node)
        data, target = node.inputs
        if constant_tensor(target) is not None:
            return NoMatch("the target is constant already", node)
        content = facts.integers(target)
        if content is None:
            return NoMatch("the target's length is not known", node)
        sizes = facts.sizes(data)
        elements = content.elements.reshape(-1).tolist()
        if self.assume_nonempty:
            nonempty = frozenset(
                n for s in (*(sizes or ()), *elements) if s is not None and not isinstance(s, int) for n in s.names
            )
        else:
            nonempty = _nonempty(context, facts)
        result = facts.sizes(node.outputs[0])
        spelled = spell_reshape(sizes, elements, result, zero_is_zero=allows_zero(node), nonempty=nonempty)
        if isinstance(spelled, NoMatch):
            return NoMatch("{0}", node, spelled.reason)
        constant = op.constant(np.array(spelled, dtype=np.int64), hint=_folded_name(target))
        return [op.op("Reshape", [data, constant], like=node.outputs[0])[0]]


def shape_facts(context: PassContext) -> ShapeAnalysis:
    """The analysis of the program, shared by all passes of a run."""
    facts = context.facts.get("shapes")
    if facts is None:
        facts = context.facts["shapes"] = analyze_shapes(context.program)
    result: ShapeAnalysis = facts
    return result


def _nonempty(context: PassContext, facts: ShapeAnalysis) -> frozenset[str]:
    found = context.facts.get("nonempty dims")
    if found is None:
        found = context.facts["nonempty dims"] = nonempty_dims(context.program, facts)
    result: frozenset[str] = found
    return result


def _folded_name(value: onnx_ir.Value | None) -> str:
    return f"{value.name}_folded" if value is not None and value.name else "folded"


def _known_content(node: onnx_ir.Node, op: Rewriter, facts: ShapeAnalysis) -> Replacement | NoMatch:
    """Cases 1 and 2."""
    used = [o for o in node.outputs if o.uses() or o.is_graph_output()]
    contents = [facts.integers(o) for o in node.outputs]
    if not used or any(c is None for c, o in zip(contents, node.outputs, strict=True) if o in used):
        return NoMatch("the elements are not known", node)
    if any(o.is_graph_output() for o in used):
        return NoMatch("a graph output is computed", node)
    arrays = [None if c is None else c.array() for c in contents]
    if all(a is not None for a, o in zip(arrays, node.outputs, strict=True) if o in used):
        return [
            onnx_ir.Value(name=None) if a is None or o not in used else op.constant(a, hint=_folded_name(o))
            for a, o in zip(arrays, node.outputs, strict=True)
        ]
    if len(node.outputs) == 1 and contents[0] is not None:
        for value in node.inputs:
            if value is not None and _are_equal(facts.integers(value), contents[0]):
                return [value]
    return NoMatch("the elements depend on symbolic dims", node)


def _are_equal(left: Integers | None, right: Integers) -> bool:
    if left is None or left.dtype != right.dtype or left.elements.shape != right.elements.shape:
        return False
    pairs = zip(left.elements.reshape(-1).tolist(), right.elements.reshape(-1).tolist(), strict=True)
    return all(a is not None and a == b for a, b in pairs)


def _expand(node: onnx_ir.Node, op: Rewriter, facts: ShapeAnalysis) -> Replacement | NoMatch:
    data, target = node.inputs
    sizes, content = facts.sizes(data), facts.integers(target)
    if data is None or sizes is None or content is None:
        return NoMatch("the shape or the target is not known", node)
    spelled = spell_expand(sizes, content.elements.reshape(-1).tolist())
    if isinstance(spelled, NoMatch):
        return NoMatch("{0}", node, spelled.reason)
    if len(spelled) <= len(sizes) and all(s == 1 for s in spelled):
        refused = can_stand_for(data, node.outputs[0])
        return refused if refused is not None else [data]
    if constant_tensor(target) is not None:
        return NoMatch("the target is constant already", node)
    constant = op.constant(np.array(spelled, dtype=np.int64), hint=_folded_name(target))
    return [op.op("Expand", [data, constant], like=node.outputs[0])[0]]


def _earlier_shape(node: onnx_ir.Node, op: Rewriter, facts: ShapeAnalysis) -> Replacement | NoMatch:
    value = node.inputs[0]
    source = value
    while (earlier := _same_shape_input(source, facts)) is not None:
        source = earlier
    if source is None or source is value:
        return NoMatch("its dims are not known, and no earlier value has them", node)
    result: onnx_ir.Value = op.Shape(source, **dict(node.attributes))
    return [result]


def _dim_of_input(
    node: onnx_ir.Node, op: Rewriter, facts: ShapeAnalysis, context: PassContext
) -> Replacement | NoMatch:
    """Case 6. Many such reads become one, by common subexpressions."""
    shape = node.inputs[0].producer() if node.inputs[0] is not None else None
    content = facts.integers(node.outputs[0])
    if not is_op(shape, "Shape") or shape is None or content is None or content.elements.size != 1:
        return NoMatch("not a single dim of a shape", node)
    found = _named_inputs(context).get(content.elements.reshape(-1)[0])
    if found is None:
        return NoMatch("the dim has no name, or several inputs have it", node)
    source, axis = found
    if shape.inputs[0] is source:
        return NoMatch("the dim is read from the input already", node)
    if context.program.opset < 15:
        return NoMatch("Shape has no bounds before opset 15", node)
    read: onnx_ir.Value = op.Shape(source, start=axis, end=axis + 1)
    if content.elements.ndim == 0:
        read = op.Squeeze(read)
    elif content.elements.ndim > 1:
        return NoMatch("not a vector", node)
    return [read]


def _named_inputs(context: PassContext) -> dict[Size, tuple[onnx_ir.Value, int]]:
    """Dims that are a name which one input alone has, with that input and the axis."""
    found = context.facts.get("named inputs")
    if found is None:
        places: dict[Size, list[tuple[onnx_ir.Value, int]]] = {}
        facts = shape_facts(context)
        for value in context.program.graph.inputs:
            for axis, size in enumerate(facts.sizes(value) or ()):
                if isinstance(size, Dim) and size.is_name and not is_opaque(size):
                    places.setdefault(size, []).append((value, axis))
        found = {size: where[0] for size, where in places.items() if len({v for v, _ in where}) == 1}
        context.facts["named inputs"] = found
    result: dict[Size, tuple[onnx_ir.Value, int]] = found
    return result


def _same_shape_input(value: onnx_ir.Value | None, facts: ShapeAnalysis) -> onnx_ir.Value | None:
    """An input of the node that computes `value` whose shape is the same."""
    node = value.producer() if value is not None else None
    if value is None or node is None or value is not node.outputs[0]:
        return None
    if is_op(node, *SAME_SHAPE):
        return node.inputs[0]
    if is_op(node, *ELEMENTWISE):
        sizes = facts.sizes(value)
        for operand in node.inputs:
            if sizes is None or operand is None or constant_tensor(operand) is not None:
                continue
            if facts.sizes(operand) == sizes:
                return operand
    return None
