"""Remove resizing by 1."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.ir.program import constant_array, constant_ints
from opgraft.passes._pass import NoMatch, PassContext
from opgraft.passes.simplify._extents import extents
from opgraft.passes.simplify._nop import NopPass
from opgraft.passes.simplify._operands import operand, string_attribute


class EliminateNopResize(NopPass):
    """Resize(x, scales=1) -> x

    Scales that are all 1, or sizes that are the dims of x. Every interpolation returns the pixels themselves there;
    cropping (`tf_crop_and_resize`) does not.
    """

    roots: ClassVar[tuple[str, ...]] = ("Resize", "Upsample")

    def source(self, node: onnx_ir.Node, context: PassContext) -> onnx_ir.Value | NoMatch:
        value = node.inputs[0]
        mode = string_attribute(node, "coordinate_transformation_mode", "half_pixel")
        if value is None or mode in (None, "tf_crop_and_resize"):
            return NoMatch("it crops", node)
        sizes = operand(node, 3)
        if sizes is not None:
            wanted, dims = constant_ints(sizes), extents(value)
            whole = "axes" not in node.attributes and wanted is not None and wanted == dims
            return value if whole else NoMatch("the sizes may differ from the input's", node)
        return value if _is_one(node) else NoMatch("a scale is not 1, or not constant", node)


def _is_one(node: onnx_ir.Node) -> bool:
    attribute = node.attributes.get("scales")
    if attribute is not None:
        return not attribute.is_ref() and all(s == 1.0 for s in attribute.as_floats())
    # Before opset 11 the scales are the second input; since then the third, after the region of interest.
    position = 1 if len(node.inputs) == 2 else 2
    scales = constant_array(operand(node, position))
    return scales is not None and scales.size > 0 and bool((scales == 1.0).all())
