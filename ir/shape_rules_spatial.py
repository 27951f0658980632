"""Shapes of convolutions, poolings and resizings."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from opgraft.ir.dims import Size, ceil_divide, floor_divide
from opgraft.ir.integer_contents import Sizes
from opgraft.ir.program import constant_array
from opgraft.ir.shape_rule import ShapeOperands, ShapeResult, ShapeRule


def _windows(shape: Sizes, kernel: Sequence[Size], operands: ShapeOperands, *, rounds_up: bool = False) -> Sizes | None:
    """Positions of a sliding window along each spatial dim of [N, C, D1 ... Dn]."""
    n_spatial = len(shape) - 2
    strides = operands.ints_attribute("strides") or [1] * n_spatial
    dilations = operands.ints_attribute("dilations") or [1] * n_spatial
    pads = operands.ints_attribute("pads") or [0] * 2 * n_spatial
    auto_pad = operands.text_attribute("auto_pad", "NOTSET")
    if not len(kernel) == len(strides) == len(dilations) == n_spatial or len(pads) != 2 * n_spatial:
        return None
    result: list[Size] = []
    for i, size in enumerate(shape[2:]):
        extent = (kernel[i] - 1) * dilations[i] + 1
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            result.append(ceil_divide(size, strides[i]))
        elif rounds_up:
            # How the last, partial window counts differs between versions of the runtime.
            result.append(operands.unknowns.fresh())
        else:
            padding = 0 if auto_pad == "VALID" else pads[i] + pads[i + n_spatial]
            result.append(floor_divide(size + padding - extent, strides[i]) + 1)
    return tuple(result)


def _convolution(weight_index: int) -> ShapeRule:
    def rule(operands: ShapeOperands) -> ShapeResult:
        shape, weight = operands.shape(0), operands.shape(weight_index)
        if shape is None or weight is None or len(shape) != len(weight) or len(shape) < 3:
            return None
        kernel: Sequence[Size] = operands.ints_attribute("kernel_shape") or weight[2:]
        windows = _windows(shape, kernel, operands)
        return None if windows is None else (shape[0], weight[0], *windows)

    return rule


def _col2im(operands: ShapeOperands) -> ShapeResult:
    shape, image, block = operands.shape(0), operands.sizes(1), operands.numbers(2)
    if shape is None or image is None or block is None or len(shape) != 3 or 0 in block:
        return None
    return (shape[0], floor_divide(shape[1], prod(block)), *image)


def _conv_transpose(operands: ShapeOperands) -> ShapeResult:
    shape, weight = operands.shape(0), operands.shape(1)
    if shape is None or weight is None or len(shape) != len(weight) or len(shape) < 3:
        return None
    n_spatial = len(shape) - 2
    channels = weight[1] * operands.int_attribute("group", 1)
    if operands.text_attribute("auto_pad", "NOTSET") != "NOTSET" or operands.ints_attribute("output_shape"):
        return (shape[0], channels, *(operands.unknowns.fresh() for _ in range(n_spatial)))
    kernel: Sequence[Size] = operands.ints_attribute("kernel_shape") or weight[2:]
    strides = operands.ints_attribute("strides") or [1] * n_spatial
    dilations = operands.ints_attribute("dilations") or [1] * n_spatial
    pads = operands.ints_attribute("pads") or [0] * 2 * n_spatial
    extra = operands.ints_attribute("output_padding") or [0] * n_spatial
    sizes = [
        (size - 1) * strides[i] + extra[i] + (kernel[i] - 1) * dilations[i] + 1 - pads[i] - pads[i + n_spatial]
        for i, size in enumerate(shape[2:])
    ]
    return (shape[0], channels, *sizes)


def _pool(operands: ShapeOperands) -> ShapeResult:
    shape, kernel = operands.shape(0), operands.ints_attribute("kernel_shape")
    if shape is None or kernel is None or len(shape) < 3:
        return None
    windows = _windows(shape, kernel, operands, rounds_up=bool(operands.int_attribute("ceil_mode", 0)))
    if windows is None:
        return None
    result = (*shape[:2], *windows)
    return [result, result]


def _global_pool(operands: ShapeOperands) -> ShapeResult:
    shape = operands.shape(0)
    return None if shape is None or len(shape) < 3 else (*shape[:2], *(1 for _ in shape[2:]))


def _resize(operands: ShapeOperands) -> ShapeResult:
    shape = operands.shape(0)
    if shape is None:
        return None
    unknown = tuple(operands.unknowns.fresh() for _ in shape)
    axes = operands.ints_attribute("axes") or list(range(len(shape)))
    stretches = operands.text_attribute("keep_aspect_ratio_policy", "stretch") == "stretch"
    sizes = operands.sizes(3) if operands.is_present(3) else None
    scales = constant_array(operands.node.inputs[2]) if operands.is_present(2) else None
    result = list(shape)
    if sizes is not None and stretches and len(sizes) == len(axes):
        for axis, size in zip(axes, sizes, strict=True):
            result[axis] = size
        return tuple(result)
    if operands.is_present(3) or scales is None or scales.shape != (len(axes),):
        return unknown
    for axis, scale in zip(axes, scales.tolist(), strict=True):
        # Other factors are rounded by the runtime in its own way.
        result[axis] = result[axis] * int(scale) if float(scale).is_integer() else unknown[axis]
    return tuple(result)


def _grid_sample(operands: ShapeOperands) -> ShapeResult:
    shape, grid = operands.shape(0), operands.shape(1)
    return None if shape is None or grid is None else (*shape[:2], *grid[1:-1])


SPATIAL_RULES: dict[str, ShapeRule] = {
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "QLinearConv": _convolution(3),
    "Col2Im": _col2im,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "LpPool": _pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "GlobalLpPool": _global_pool,
    "Resize": _resize,
    "GridSample": _grid_sample,
}
