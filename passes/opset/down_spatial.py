"""Downgrades of spatial operators."""

from __future__ import annotations

import numpy as np
from opgraft.passes.opset.site import CannotConvertError, Site
from opgraft.passes.opset.steps import Results, downgrade


@downgrade(18, "Resize")
def resize_all_axes(site: Site) -> Results:
    """Resize(x, ..., axes=[...]) -> Resize over all axes; no antialiasing, no kept aspect ratio."""
    if site.attribute("antialias"):
        raise CannotConvertError("Resize with antialiasing")
    if site.attribute("keep_aspect_ratio_policy") != "stretch" and site.input(3) is not None:
        raise CannotConvertError("Resize that keeps the aspect ratio")
    dropped = ["antialias", "keep_aspect_ratio_policy", "axes"]
    axes = site.attribute("axes")
    if axes is None:
        return site.again(drop=dropped)
    rank = site.known_rank()
    places = [int(a) % rank for a in axes]
    inputs = [site.operand(0), site.input(1), site.input(2), site.input(3)]
    scales, sizes, dims = (
        site.known_constant(2, "the scales"),
        site.known_constant(3, "the sizes"),
        site.dims(),
    )
    if site.attribute("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise CannotConvertError("Resize of a region along some axes")
    if scales is not None and scales.size:
        full = np.ones(rank, dtype=np.float32)
        full[places] = scales
        inputs[2] = site.literal(full)
    elif sizes is not None:
        if dims is None or any(d is None for i, d in enumerate(dims) if i not in places):
            raise CannotConvertError("Resize to sizes along some axes of an unrecorded shape")
        whole = np.array([d or 0 for d in dims], dtype=np.int64)
        whole[places] = sizes
        inputs[3] = site.literal(whole)
    inputs[1] = None
    return site.again(inputs, drop=dropped)


@downgrade(13, "Resize")
def spell_placeholders(site: Site) -> Results:
    """Absent `roi` and `scales` were empty tensors."""
    empty = site.literal(np.array([], dtype=np.float32))
    return site.again((site.operand(0), site.input(1) or empty, site.input(2) or empty, site.input(3)))


@downgrade(11, "Resize")
def require_asymmetric(site: Site) -> Results:
    """Resize-10 knew asymmetric coordinates only, and rounded down when enlarging, up when shrinking."""
    scales = site.known_constant(2, "the scales")
    if site.input(3) is not None or scales is None:
        raise CannotConvertError("Resize to given sizes")
    if site.attribute("coordinate_transformation_mode") != "asymmetric":
        raise CannotConvertError("Resize with other than asymmetric coordinates")
    mode, rounding = site.attribute("mode"), site.attribute("nearest_mode")
    suits = np.all(scales >= 1) if rounding == "floor" else rounding == "ceil" and np.all(scales <= 1)
    if mode not in ("nearest", "linear") or (mode == "nearest" and not suits):
        raise CannotConvertError(f"Resize in mode {mode!r} with rounding {rounding!r}")
    dropped = set(site.node.attributes) - {"mode"}
    return site.again((site.operand(0), site.operand(2)), drop=dropped)


@downgrade(10, "Resize")
def rename_to_upsample(site: Site) -> Results:
    """Resize was called Upsample, and only enlarged."""
    scales = site.known_constant(1, "the scales")
    if scales is None or np.any(scales < 1):
        raise CannotConvertError("Upsample cannot shrink")
    return site.again(op_type="Upsample")


@downgrade(9, "Upsample")
def scales_to_attribute(site: Site) -> Results:
    """Upsample(x, [...]) -> Upsample(x, scales=[...])."""
    scales = site.known_constant(1, "the scales")
    return None if scales is None else site.again((site.operand(0),), scales=[float(s) for s in scales])


@downgrade(16, "RoiAlign")
def require_roi_coordinates(site: Site) -> Results:
    """RoiAlign-10 did not shift by half a pixel."""
    if site.attribute("coordinate_transformation_mode") != "output_half_pixel":
        raise CannotConvertError("RoiAlign with shifted coordinates")
    return site.again(drop=["coordinate_transformation_mode"])


@downgrade(20, "GridSample")
def rename_sampling_mode(site: Site) -> Results:
    """`linear` and `cubic` had the prefix of two dims, and there were two only."""
    if site.known_rank() != 4:
        raise CannotConvertError("GridSample over other than two dims")
    mode = site.attribute("mode")
    return site.again(mode={"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode))
