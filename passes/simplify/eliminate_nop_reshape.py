"""Remove reshapes to the shape that a value has."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.ir.program import constant_ints
from opgraft.passes._pass import NoMatch, PassContext
from opgraft.passes.simplify._extents import extents, have_same_elements, rank_of
from opgraft.passes.simplify._nop import NopPass
from opgraft.passes.simplify._operands import int_attribute, ints_attribute, ints_operand, operand, producer


class EliminateNopReshape(NopPass):
    """Reshape(x, shape) -> x

    1. a constant shape whose entries copy (0), infer (one -1) or repeat the dims of x
    2. the shape is Shape(x)
    3. the shape is computed, and input and output are known to have the same dims; one may be unknown when the others
       are positive numbers
    Flatten of a matrix at axis 1, and Squeeze and Unsqueeze of no axis, likewise.
    """

    roots: ClassVar[tuple[str, ...]] = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")

    def source(self, node: onnx_ir.Node, context: PassContext) -> onnx_ir.Value | NoMatch:
        value = node.inputs[0]
        if value is None:
            return NoMatch("the input is absent", node)
        if node.op_type == "Reshape":
            proved = _keeps_shape(node, value)
        elif node.op_type == "Flatten":
            proved = rank_of(value) == 2 and int_attribute(node, "axis", 1) in (1, -1)
        else:
            proved = _has_no_axis(node, value)
        # A constant shape says more than what is recorded of the result, which may be wrong.
        is_computed = node.op_type == "Reshape" and constant_ints(operand(node, 1)) is None
        source, target = extents(value), extents(node.outputs[0]) if is_computed else None
        if proved or (source is not None and target is not None and have_same_elements(source, target)):
            return value
        return NoMatch("the shape may differ from the input's", node)


def _keeps_shape(node: onnx_ir.Node, value: onnx_ir.Value) -> bool:
    shape = operand(node, 1)
    measured = producer(shape, None, "Shape")
    if measured is not None and measured.inputs[0] is value and not measured.attributes:
        return True
    target = constant_ints(shape) if shape is not None else ints_attribute(node, "shape")
    source = extents(value)
    if target is None or source is None or len(target) != len(source):
        return False
    copies = int_attribute(node, "allowzero", 0) == 0
    entries = [d if t == 0 and copies else t for d, t in zip(source, target, strict=True)]
    different = [i for i, (d, t) in enumerate(zip(source, entries, strict=True)) if d is None or d != t]
    inexact = [i for i in different if not (target[i] == 0 and copies)]
    return not inexact or (len(inexact) == 1 and target[inexact[0]] == -1)


def _has_no_axis(node: onnx_ir.Node, value: onnx_ir.Value) -> bool:
    axes = ints_operand(node, "axes", 1)
    if axes is not None:
        return not axes
    dims = extents(value)
    absent = node.op_type == "Squeeze" and "axes" not in node.attributes and operand(node, 1) is None
    return absent and dims is not None and all(isinstance(d, int) and d != 1 for d in dims)
