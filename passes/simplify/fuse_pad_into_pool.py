"""Let poolings pad their input themselves."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir
from opgraft.ir.program import is_op
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._weights import check_literal, int_attribute
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._padding import SpatialPadding, is_positive_zero, own_pads, spatial_padding


class FusePadIntoPool(NodePass):
    """AveragePool(Pad(x, p), pads = q) -> AveragePool(x, pads = p + q, count_include_pad = 1)

    1. AveragePool: the zeros of Pad are counted, so all padding must be. The zero of a window of zeros may change its
       sign.
    2. MaxPool of integers: the number of Pad must be one that never wins, the type's smallest.

    A pooling pads by less than its kernel, never starts a window in the padding after the end (`ceil_mode`), and
    counts indices without its padding: those forms stay.
    """

    contract: ClassVar[Contract] = Contract.NUMERIC
    roots: ClassVar[tuple[str, ...]] = ("AveragePool", "MaxPool")

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        refused = check_literal(node)
        if refused is not None:
            return refused
        kernel = tuple(node.attributes["kernel_shape"].as_ints())
        padding = spatial_padding(node.inputs[0], len(kernel) + 2)
        pads = own_pads(node, len(kernel))
        if isinstance(padding, NoMatch) or isinstance(pads, NoMatch):
            return padding if isinstance(padding, NoMatch) else pads  # type: ignore[return-value]
        total = [p + q for p, q in zip((*padding.begins, *padding.ends), pads, strict=True)]
        refused = _check_form(node, kernel, total) or _check_number(node, padding, pads)
        if refused is not None:
            return refused
        attributes = {name: a.value for name, a in node.attributes.items() if name != "auto_pad"} | {"pads": total}
        if is_op(node, "AveragePool"):
            attributes["count_include_pad"] = 1
        return op.op(node.op_type, [padding.value], **attributes)


def _check_form(node: onnx_ir.Node, kernel: tuple[int, ...], total: list[int]) -> NoMatch | None:
    if int_attribute(node, "ceil_mode", 0):
        return NoMatch("rounding the size up treats padding of its own differently", node)
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        return NoMatch("the indices are used: they count the padding", node)
    if any(pad >= size for pad, size in zip(total, kernel * 2, strict=True)):
        return NoMatch("a pooling pads by less than its kernel", node)
    return None


def _check_number(node: onnx_ir.Node, padding: SpatialPadding, pads: tuple[int, ...]) -> NoMatch | None:
    number = padding.number
    if is_op(node, "AveragePool"):
        if not is_positive_zero(number):
            return NoMatch("the padding number is not zero", node)
        if any(pads) and not int_attribute(node, "count_include_pad", 0):
            return NoMatch("the pooling does not count its own padding, but that of Pad", node)
        return None
    dtype = padding.value.dtype
    if dtype is None:
        return NoMatch("the type of the input is not known", node)
    if not dtype.is_integer():
        # Found by trying: ONNX Runtime's kernels let the last of NaN and -inf win, and start from float32's smallest.
        return NoMatch("a MaxPool of floats treats NaN beside padding differently", node)
    if (0 if number is None else number) != np.iinfo(dtype.numpy()).min:
        return NoMatch("the padding number can be the largest of a window", node)
    return None
