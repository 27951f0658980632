"""FX rules of convolutions, pools and image operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from opgraft.ir.fx import ops_resize, ops_spatial
from opgraft.ir.fx import ops_spatial as ops
from opgraft.ir.fx.call import Call, Outputs, Rule
from opgraft.ir.fx.values import DataType
from torch import fx

aten = torch.ops.aten
_CONV = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
_CONV_TRANSPOSE = {
    1: aten.conv_transpose1d.default,
    2: aten.conv_transpose2d.input,
    3: aten.conv_transpose3d.input,
}
_MAX_POOL = {1: aten.max_pool1d.default, 2: aten.max_pool2d.default, 3: aten.max_pool3d.default}
_AVERAGE_POOL = {1: aten.avg_pool1d.default, 2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}


class Geometry:
    """The attributes that convolutions and pools share, with their defaults."""

    def __init__(self, call: Call, rank: int, kernel: list[int] | None) -> None:
        self.rank = rank
        self.kernel = kernel or []
        self.strides = call.ints_attribute("strides") or [1] * rank
        self.dilations = call.ints_attribute("dilations") or [1] * rank
        self.auto_pad = call.text_attribute("auto_pad", "NOTSET")
        given = call.ints_attribute("pads") or [0] * (2 * rank)
        self.pads = [0] * (2 * rank) if self.auto_pad == "VALID" else given

    @property
    def is_same(self) -> bool:
        return self.auto_pad.startswith("SAME")

    @property
    def symmetric(self) -> list[int] | None:
        """One pad per axis, where begin and end are equal."""
        begins, ends = self.pads[: self.rank], self.pads[self.rank :]
        return begins if begins == ends and not self.is_same and min(begins, default=0) >= 0 else None


def _conv_rank(call: Call, weight: int) -> int:
    given = call.ints_attribute("kernel_shape") or call.ints_attribute("strides") or call.ints_attribute("dilations")
    return len(given) if given else call.rank(weight) - 2


def conv(call: Call) -> Outputs:
    rank = _conv_rank(call, 1)
    geometry, groups = Geometry(call, rank, None), call.int_attribute("group", 1)
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    strides, dilations = geometry.strides, geometry.dilations
    if geometry.is_same:
        return call.emit(ops.same_conv, x, weight, bias, strides, dilations, groups, geometry.auto_pad == "SAME_UPPER")
    pads = geometry.symmetric
    if pads is None:
        x = call.emit(ops.padded, x, geometry.pads[:rank], geometry.pads[rank:])
        pads = [0] * rank
    if rank in _CONV:
        return call.emit(_CONV[rank], x, weight, bias, strides, pads, dilations, groups)
    return call.emit(aten.convolution.default, x, weight, bias, strides, pads, dilations, False, [0] * rank, groups)


def conv_transpose(call: Call) -> Outputs:
    rank = _conv_rank(call, 1)
    geometry, groups = Geometry(call, rank, None), call.int_attribute("group", 1)
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    output_padding, output_shape = (
        call.ints_attribute("output_padding") or [0] * rank,
        call.ints_attribute("output_shape"),
    )
    pads, strides, dilations = geometry.symmetric, geometry.strides, geometry.dilations
    small = all(o < max(s, d) for o, s, d in zip(output_padding, strides, dilations, strict=True))
    if pads is not None and output_shape is None and small and rank in _CONV_TRANSPOSE:
        return call.emit(_CONV_TRANSPOSE[rank], x, weight, bias, strides, pads, output_padding, groups, dilations)
    given = None if geometry.is_same else geometry.pads
    if output_shape is not None:
        output_shape = output_shape[-rank:]
    shared = (strides, dilations, groups, output_padding, given, output_shape, geometry.auto_pad)
    return call.emit(ops.conv_transpose, x, weight, bias, *shared)


def conv_integer(call: Call) -> Outputs:
    rank = _conv_rank(call, 1)
    geometry = Geometry(call, rank, None)
    made = call.emit(
        ops.integer_conv,
        *(call.tensor(0), call.tensor(1), call.optional(2), call.optional(3)),
        *(geometry.strides, geometry.pads, geometry.dilations, call.int_attribute("group", 1), geometry.auto_pad),
    )
    return call.result(made, DataType.INT32)


# -- pools -------------------------------------------------------------------------------------------------------------


def _pool_geometry(call: Call) -> Geometry:
    kernel = call.ints_attribute("kernel_shape") or []
    return Geometry(call, len(kernel), kernel)


def _fits_torch(geometry: Geometry) -> list[int] | None:
    """Pads that torch's pools take: equal at both ends, at most half of the window."""
    pads = geometry.symmetric
    if pads is None or any(2 * p > k for p, k in zip(pads, geometry.kernel, strict=True)):
        return None
    return pads if geometry.rank in _MAX_POOL else None


def max_pool(call: Call) -> Outputs:
    geometry, ceil_mode = _pool_geometry(call), bool(call.int_attribute("ceil_mode", 0))
    pads, kernel, strides = _fits_torch(geometry), geometry.kernel, geometry.strides
    if pads is not None and call.n_outputs == 1 and not call.is_integer():
        return call.emit(_MAX_POOL[geometry.rank], call.tensor(0), kernel, strides, pads, geometry.dilations, ceil_mode)
    made = call.emit(
        ops.max_pool,
        *(call.tensor(0), kernel, strides, geometry.dilations, geometry.pads, geometry.auto_pad),
        *(ceil_mode, bool(call.int_attribute("storage_order", 0))),
    )
    return call.outputs_of(made, 2)


def average_pool(call: Call) -> Outputs:
    geometry, ceil_mode = _pool_geometry(call), bool(call.int_attribute("ceil_mode", 0))
    pads, kernel, strides = _fits_torch(geometry), geometry.kernel, geometry.strides
    count_padding = bool(call.int_attribute("count_include_pad", 0))
    if pads is not None and set(geometry.dilations) <= {1}:
        return call.emit(_AVERAGE_POOL[geometry.rank], call.tensor(0), kernel, strides, pads, ceil_mode, count_padding)
    return call.emit(
        ops.average_pool,
        *(call.tensor(0), kernel, strides, geometry.dilations, geometry.pads, geometry.auto_pad),
        *(ceil_mode, count_padding),
    )


def lp_pool(call: Call) -> Outputs:
    geometry = _pool_geometry(call)
    return call.emit(
        ops.lp_pool,
        *(call.tensor(0), geometry.kernel, geometry.strides, geometry.dilations, geometry.pads, geometry.auto_pad),
        *(bool(call.int_attribute("ceil_mode", 0)), call.int_attribute("p", 2)),
    )


def _global(target: Callable[..., Any], torch_target: Callable[..., Any]) -> Rule:
    def rule(call: Call) -> Outputs:
        rank = call.known_rank()
        if rank is None:
            return call.emit(target, call.tensor(0))
        return call.emit(torch_target, call.tensor(0), list(range(2, rank)), True)

    return rule


def global_lp_pool(call: Call) -> Outputs:
    return call.emit(ops.global_lp, call.tensor(0), call.int_attribute("p", 2))


def column_to_image(call: Call) -> Outputs:
    shape, block, counted = call.scalars(1), call.scalars(2), call.static_shape(2)
    if counted is None:
        raise call.fail("the number of spatial dims is not known")
    rank = counted[0]
    strides, dilations = call.ints_attribute("strides") or [1] * rank, call.ints_attribute("dilations") or [1] * rank
    pads = call.ints_attribute("pads") or [0] * (2 * rank)
    return call.emit(ops.column_to_image, call.tensor(0), shape, block, strides, dilations, pads)


# -- resampling --------------------------------------------------------------------------------------------------------


def resize(call: Call) -> Outputs:
    sizes_at, scales_at = (3, 2) if call.opset > 10 else (3, 1)
    sizes = call.scalars(sizes_at) if call.has(sizes_at) else None
    scales = None if sizes else _floats(call, scales_at)
    if not sizes and not scales:
        raise call.fail("neither sizes nor scales are given")
    roi = _floats(call, 1) if call.opset > 10 else None
    # Opset 10 knows no modes of coordinates: positions are divided by the scale.
    mode = call.text_attribute("coordinate_transformation_mode", "half_pixel") if call.opset > 10 else "asymmetric"
    nearest = call.text_attribute("nearest_mode", "round_prefer_floor") if call.opset > 10 else "floor"
    return call.emit(
        ops_resize.resize,
        call.tensor(0),
        scales or None,
        sizes,
        call.ints_attribute("axes"),
        roi if mode == "tf_crop_and_resize" else None,
        kind=call.text_attribute("mode", "nearest"),
        coordinates=mode,
        nearest=nearest,
        cubic=call.float_attribute("cubic_coeff_a", -0.75),
        exclude_outside=bool(call.int_attribute("exclude_outside", 0)),
        extrapolation=call.float_attribute("extrapolation_value", 0.0),
        antialias=bool(call.int_attribute("antialias", 0)),
        policy=call.text_attribute("keep_aspect_ratio_policy", "stretch"),
    )


def _floats(call: Call, index: int) -> list[float] | fx.Node | None:
    if not call.has(index):
        return None
    array = call.array(index)
    if array is None:
        return call.emit(ops_resize.float_list, call.tensor(index))
    return [float(n) for n in array.reshape(-1)]


def upsample(call: Call) -> Outputs:
    scales = call.floats_attribute("scales") or _floats(call, 1)
    return call.emit(
        ops_resize.resize,
        call.tensor(0),
        scales,
        None,
        None,
        None,
        kind=call.text_attribute("mode", "nearest"),
        coordinates="asymmetric",
        nearest="floor",
    )


def grid_sample(call: Call) -> Outputs:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(
        call.text_attribute("mode", "linear"), call.text_attribute("mode", "linear")
    )
    return call.emit(
        torch.nn.functional.grid_sample,
        *(call.tensor(0), call.tensor(1)),
        mode=mode,
        padding_mode=call.text_attribute("padding_mode", "zeros"),
        align_corners=bool(call.int_attribute("align_corners", 0)),
    )


def affine_grid(call: Call) -> Outputs:
    aligned = bool(call.int_attribute("align_corners", 0))
    return call.emit(torch.nn.functional.affine_grid, call.tensor(0), call.scalars(1), aligned)


SPATIAL_RULES: dict[str, Rule] = {
    "AffineGrid": affine_grid,
    "AveragePool": average_pool,
    "Col2Im": column_to_image,
    "Conv": conv,
    "ConvInteger": conv_integer,
    "ConvTranspose": conv_transpose,
    "GlobalAveragePool": _global(ops_spatial.global_average, aten.mean.dim),
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": _global(ops_spatial.global_max, aten.amax.default),
    "GridSample": grid_sample,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
    "Resize": resize,
    "Upsample": upsample,
}
