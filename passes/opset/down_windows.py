"""Downgrades of the window functions below opset 17."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir
from opgraft.passes.opset.site import CannotConvertError, Site
from opgraft.passes.opset.steps import Results, downgrade

_TERMS = {
    "HannWindow": (0.5, -0.5),
    "HammingWindow": (25 / 46, -21 / 46),
    # The runtime's 0.42 is 0.5 - 0.08 in float32, whose last bit is another one: the terms cancel at the ends.
    "BlackmanWindow": (float(np.float32(0.5) - np.float32(0.08)), -0.5, 0.08),
}
"""The factors of 1, cos(a), cos(2 a), to be rounded to float32 as the standard's bodies have them."""


@downgrade(17, *_TERMS)
def expand_window(site: Site) -> Results:
    """sum of c[k] * cos(k * a), a = 2 pi / n * [0, 1, ..., size - 1]; n = size, or size - 1 when not periodic.

    In float64 as the runtime's kernels: the standard's own float32 body is far off where the terms cancel.
    """
    if site.version < 11:
        raise CannotConvertError("needs Range of opset 11")
    site.rounds = True
    double = {"to": int(onnx_ir.DataType.DOUBLE)}
    size = site.emit_one("Cast", (site.operand(0),), double)
    zero, one, turn = (site.literal(np.array(number, np.float64)) for number in (0, 1, 2 * math.pi))
    period = size if site.attribute("periodic") else site.emit_one("Sub", (size, one))
    increment = site.emit_one("Div", (turn, period))
    angle = site.emit_one("Mul", (site.emit_one("Range", (zero, size, one)), increment))
    constant, *factors = np.array(_TERMS[site.node.op_type], np.float32).astype(np.float64)
    total = site.literal(np.array(constant))
    for index, factor in enumerate(factors, start=1):
        multiple = angle if index == 1 else site.emit_one("Mul", (angle, site.literal(np.array(index, np.float64))))
        cosine = site.emit_one("Cos", (multiple,))
        total = site.emit_one("Add", (total, site.emit_one("Mul", (cosine, site.literal(np.array(factor))))))
    return [site.emit_one("Cast", (total,), {"to": int(site.attribute("output_datatype"))})]
