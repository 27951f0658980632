"""Upgrades of spatial operators: resizing, pooling, sampling."""

from __future__ import annotations

import numpy as np
import onnx_ir
from opgraft.passes.opset.site import CannotConvertError, Site
from opgraft.passes.opset.steps import Results, upgrade


@upgrade(7, "Upsample")
def spell_all_scales(site: Site) -> Results:
    """Upsample(x, height_scale=h, width_scale=w) -> Upsample(x, scales=[1, 1, h, w])."""
    scales = [1.0, 1.0, float(site.attribute("height_scale")), float(site.attribute("width_scale"))]
    mode = "linear" if site.attribute("mode") == "bilinear" else site.attribute("mode")
    return site.again(drop=["height_scale", "width_scale"], scales=scales, mode=mode)


@upgrade(9, "Upsample")
def scales_to_input(site: Site) -> Results:
    """Upsample(x, scales=[...]) -> Upsample(x, [...])."""
    scales = site.literal(np.array(site.attribute("scales"), dtype=np.float32))
    return site.again((site.operand(0), scales), drop=["scales"])


@upgrade(10, "Upsample")
def rename_upsample(site: Site) -> Results:
    """Upsample was replaced by Resize, which also shrinks."""
    return site.again(op_type="Resize")


@upgrade(11, "Resize")
def spell_resize_coordinates(site: Site) -> Results:
    """Resize(x, scales) -> Resize(x, , scales, asymmetric coordinates).

    Nearest neighbour rounded down where it enlarged an axis and up where it shrank one (the recorded outputs
    of Resize-10 say so). Resize-11 has one rounding for all axes; where both occur, the enlarging is done
    first and the shrinking second, which is exact since each axis is resized alone.
    """
    scales, mode = site.operand(1), site.attribute("mode")
    if mode != "nearest":
        return [_resize(site, site.operand(0), scales, None)]
    known = site.constant(1)
    if known is not None and (np.all(known >= 1) or np.all(known <= 1)):
        return [_resize(site, site.operand(0), scales, "floor" if np.all(known >= 1) else "ceil")]
    one = site.literal(np.array([1], dtype=np.float32))
    growing = site.emit_one("Max", (scales, one))
    shrinking = site.emit_one("Min", (scales, one))
    grown = _resize(site, site.operand(0), growing, "floor")
    grown.shape = None
    return [_resize(site, grown, shrinking, "ceil")]


def _resize(site: Site, x: onnx_ir.Value, scales: onnx_ir.Value, rounding: str | None) -> onnx_ir.Value:
    no_roi = site.literal(np.array([], dtype=np.float32))
    return site.again((x, no_roi, scales), coordinate_transformation_mode="asymmetric", nearest_mode=rounding)[0]


@upgrade(13, "Resize")
def drop_placeholders(site: Site) -> Results:
    """Empty `roi` and `scales` become absent, and a mode that was removed is written with another.

    The coordinate of `tf_half_pixel_for_nn`, (x + 0.5) / s, is the half-pixel one plus a half: rounding it
    down is rounding that one half up, and rounding it half down is rounding that one up.
    """
    roi, sizes = site.constant(1), site.input(3)
    inputs = [
        site.operand(0),
        None if roi is not None and roi.size == 0 else site.input(1),
        None if sizes is not None else site.input(2),
        sizes,
    ]
    if site.attribute("coordinate_transformation_mode") != "tf_half_pixel_for_nn":
        return site.again(inputs)
    equal = {"floor": "round_prefer_ceil", "round_prefer_floor": "ceil"}.get(site.attribute("nearest_mode"))
    if site.attribute("mode") != "nearest" or equal is None:
        raise CannotConvertError("tf_half_pixel_for_nn was removed; in this mode it has no equal")
    return site.again(inputs, coordinate_transformation_mode="half_pixel", nearest_mode=equal)


@upgrade(16, "RoiAlign")
def keep_roi_coordinates(site: Site) -> Results:
    """RoiAlign-16 shifts by half a pixel unless told not to."""
    return site.again(coordinate_transformation_mode="output_half_pixel")


@upgrade(20, "GridSample")
def rename_sampling_mode(site: Site) -> Results:
    """`bilinear` and `bicubic` lost their prefix when other ranks came."""
    renamed = {"bilinear": "linear", "bicubic": "cubic"}.get(site.attribute("mode"))
    return site.again(mode=renamed) if renamed else None


@upgrade(2, "LpPool", "GlobalLpPool")
def integral_norm_order(site: Site) -> Results:
    """p was a float."""
    p = float(site.attribute("p"))
    if not p.is_integer():
        raise CannotConvertError(f"the norm order {p} is not an integer")
    if site.node.op_type == "LpPool" and "kernel_shape" not in site.node.attributes:
        raise CannotConvertError("LpPool without kernel_shape")
    return site.again(p=int(p))
