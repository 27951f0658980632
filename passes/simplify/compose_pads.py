"""Merge pads of pads."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir
from opgraft.ir.program import constant_array
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._operands import (
    ints_operand,
    operand,
    opset_of,
    producer,
    refuse_parameters,
    same_constant,
    string_attribute,
)


class ComposePads(NodePass):
    """Pad(Pad(x, p), q) -> Pad(x, p + q)

    In modes constant, with the same number, and edge; nothing is cropped (negative pads). Reflections of reflections
    are not one reflection.
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Pad",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        inner = producer(node.inputs[0], node.graph, "Pad")
        value = inner.inputs[0] if inner is not None else None
        if inner is None or value is None:
            return NoMatch("the operand is not padded", node)
        refused = refuse_parameters(node) or refuse_parameters(inner)
        if refused is not None:
            return refused
        mode = string_attribute(node, "mode", "constant")
        if mode not in ("constant", "edge") or mode != string_attribute(inner, "mode", "constant"):
            return NoMatch("the modes differ or reflect", node)
        if mode == "constant" and not _same_number(inner, node):
            return NoMatch("the padded numbers differ or are not known", node)
        first, second = ints_operand(inner, "pads", 1), ints_operand(node, "pads", 1)
        axes = operand(node, 3), operand(inner, 3)
        if first is None or second is None or len(first) != len(second) or not same_constant(*axes):
            return NoMatch("the pads are not known for the same axes", node)
        if min([*first, *second], default=0) < 0:
            return NoMatch("negative pads crop", node)
        pads = [a + b for a, b in zip(first, second, strict=True)]
        attributes: dict[str, Any] = dict(node.attributes)
        if opset_of(node, context) < 11:
            return [op.Pad(value, **{**attributes, "pads": pads})]
        constant = op.constant(np.array(pads, dtype=np.int64), "pads")
        return [op.Pad(value, constant, *node.inputs[2:], **attributes)]


def _same_number(inner: onnx_ir.Node, node: onnx_ir.Node) -> bool:
    numbers = [_number(inner), _number(node)]
    return None not in numbers and numbers[0] == numbers[1]


def _number(node: onnx_ir.Node) -> bytes | None:
    attribute = node.attributes.get("value")
    if attribute is not None:
        return np.float32(attribute.value).tobytes()
    value = operand(node, 2)
    if value is None:
        # The default is 0 of the padded type, or of float32 where it was an attribute.
        width = node.inputs[0].dtype.itemsize if node.inputs[0] is not None and node.inputs[0].dtype else 4
        return bytes(int(width))
    array = constant_array(value)
    return None if array is None or array.size != 1 else array.tobytes()
