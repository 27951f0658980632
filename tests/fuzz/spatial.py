"""Operators on images: pools, resizing, sampling, normalization."""

from __future__ import annotations

import numpy as np

from fuzz.draw import Draw
from fuzz.kernels import FLOAT, FLOATS, INT64, numpy_type
from fuzz.linear import Window, image
from fuzz.registry import emits
from fuzz.values import Shape, Unfit, Value, both

# -- pools -----------------------------------------------------------------------------------------------------------


@emits("MaxPool", "AveragePool", "LpPool")
def pool(d: Draw, op: str) -> None:
    x = image(d, op, ranks=(3, 4, 4, 5))
    since = {"MaxPool": 10, "AveragePool": 10, "LpPool": 18}[op]
    if d.chance(0.2) and op != "LpPool":
        x = _padded(d, x, _least(x.dtype) if op == "MaxPool" else 0.0)
    window = Window(d, x, dilated=op == "MaxPool" or (op == "AveragePool" and d.opset >= 19))
    ceil = bool(d.opset >= since and not window.auto_pad and d.chance(0.3))
    shown: dict[str, object] = {"ceil_mode": int(ceil)} if ceil else {}
    if op == "AveragePool" and d.chance(0.5):
        shown["count_include_pad"] = d.integer(0, 2)
    out = both(lambda s: (*s[:2], *window.out(s, ceil=ceil)), x)
    results = [(x.dtype, out)]
    if op == "MaxPool" and d.chance(0.2) and not ceil:
        results.append((INT64, out))
    d.node(op, [x], results, kernel_shape=window.kernel, **shown, **window.attributes(d))


def _least(dtype: int) -> float:
    return -np.inf if dtype in FLOATS else np.iinfo(numpy_type(dtype)).min


def _padded(d: Draw, x: Value, number: float) -> Value:
    spatial = [int(d.pick((0, 1))) for _ in range(2 * (x.rank - 2))]
    pads = [0, 0, *spatial[: x.rank - 2], 0, 0, *spatial[x.rank - 2 :]]
    out = both(lambda s: tuple(n + pads[i] + pads[x.rank + i] for i, n in enumerate(s)), x)
    value = d.constant(np.array(number).astype(numpy_type(x.dtype))) if d.chance(0.7) else None
    return d.node("Pad", [x, d.ints(pads), value], [(x.dtype, out)])[0]


@emits("GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool")
def global_pool(d: Draw, op: str) -> None:
    x = image(d, op)
    d.node(op, [x], [(x.dtype, both(lambda s: (*s[:2], *[1] * (len(s) - 2)), x))])


# -- resizing --------------------------------------------------------------------------------------------------------


@emits("Resize")
def resize(d: Draw, op: str) -> None:
    x = image(d, op, ranks=(4,), among=(FLOAT,))
    scales = [1.0, 1.0, *(float(d.pick((1, 1, 2, 3, 0.5))) for _ in range(2))]
    mode = d.pick(("nearest", "nearest", "linear"))
    shown: dict[str, object] = {"mode": mode}
    if d.chance(0.6):
        shown["coordinate_transformation_mode"] = d.pick(("asymmetric", "half_pixel", "align_corners"))
    if mode == "nearest" and d.chance(0.5):
        shown["nearest_mode"] = d.pick(("floor", "round_prefer_floor", "ceil"))
    roi = d.constant(np.zeros(0, np.float32)) if d.opset < 13 else None
    out = both(lambda s: tuple(np.floor(np.multiply(s, scales))), x)
    if any(0 in s for s in out):
        raise Unfit("nothing is left")
    if d.chance(0.3) and x.is_static:
        scale = d.constant(np.zeros(0, np.float32)) if d.opset < 13 else None
        d.node(op, [x, roi, scale, d.ints(out[0])], [(x.dtype, out)], **shown)
    else:
        d.node(op, [x, roi, d.constant(np.array(scales, np.float32))], [(x.dtype, out)], **shown)


@emits("GridSample")
def grid_sample(d: Draw, op: str) -> None:
    x = image(d, op, ranks=(4,), among=(FLOAT,))
    n = x.shape[0]
    if x.shapes[1][0] != n:
        raise Unfit("no grid for a symbolic batch")
    grid = d.constant(d.rng.uniform(-1, 1, (n, 2, 3, 2)).astype(np.float32))
    mode = d.pick(("bilinear", "nearest") if d.opset < 20 else ("linear", "nearest"))
    shown = {"mode": mode, "padding_mode": d.pick(("zeros", "border", "reflection")), "align_corners": d.integer(0, 2)}
    d.node(op, [x, grid], [(x.dtype, both(lambda s: (*s[:2], 2, 3), x))], **shown)


@emits("AffineGrid")
def affine_grid(d: Draw, op: str) -> None:
    theta = d.input(FLOAT, ((2, 2, 3), (2, 2, 3)))
    out = (2, 3, 4, 2)
    d.node(op, [theta, d.ints([2, 1, 3, 4])], [(FLOAT, (out, out))], align_corners=d.integer(0, 2))


@emits("RoiAlign")
def roi_align(d: Draw, op: str) -> None:
    x = image(d, op, ranks=(4,), among=(FLOAT,))
    rois = d.constant(np.array([[0, 0, 2, 2], [1, 0, 3, 2.5]], np.float32))
    out = both(lambda s: (2, s[1], 2, 2), x)
    d.node(op, [x, rois, d.ints([0, 0])], [(x.dtype, out)], output_height=2, output_width=2, sampling_ratio=2)


@emits("Col2Im")
def col_to_image(d: Draw, op: str) -> None:
    shape = (d.integer(1, 3), 2 * 4, 9)
    x = d.value((FLOAT,), ranks=(3,), where=lambda v: v.shapes == (shape, shape), make=(shape, shape))
    out = (shape[0], 2, 4, 4)
    d.node(op, [x, d.ints([4, 4]), d.ints([2, 2])], [(FLOAT, (out, out))])


# -- normalization ---------------------------------------------------------------------------------------------------


@emits("BatchNormalization")
def batch_normalization(d: Draw, op: str) -> None:
    x = image(d, op, ranks=(2, 3, 4))
    c = x.shape[1]
    operands = [d.weight(x.dtype, (c,), positive=i == 3) for i in range(4)]
    d.same(op, [x, *operands], epsilon=1e-3 if d.chance(0.5) else None)


@emits("InstanceNormalization")
def instance_normalization(d: Draw, op: str) -> None:
    x = image(d, op)
    d.same(op, [x, d.weight(x.dtype, (x.shape[1],)), d.weight(x.dtype, (x.shape[1],))])


@emits("GroupNormalization")
def group_normalization(d: Draw, op: str) -> None:
    x = image(d, op, ranks=(4,), among=(FLOAT,))
    groups = d.pick([g for g in (1, 2, x.shape[1]) if x.shape[1] % g == 0])
    scale = x.shape[1] if d.opset >= 21 else groups
    d.same(op, [x, d.weight(x.dtype, (scale,)), d.weight(x.dtype, (scale,))], num_groups=groups)


@emits("LayerNormalization", "RMSNormalization")
def layer_normalization(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(1, 2, 3), where=lambda v: not v.is_empty)
    axis = d.axis(x)
    tail: Shape = x.shape[axis:]
    if x.shapes[1][axis:] != tail:
        raise Unfit("no scale for a symbolic dim")
    operands: list[Value | None] = [x, d.weight(x.dtype, tail)]
    if op == "LayerNormalization" and d.chance(0.5):
        operands.append(d.weight(x.dtype, tail))
    d.same(op, operands, axis=d.spelled(axis, x.rank), epsilon=1e-4 if d.chance(0.5) else None)


@emits("MeanVarianceNormalization")
def mean_variance_normalization(d: Draw, op: str) -> None:
    d.same(op, [image(d, op, ranks=(4,), among=(FLOAT,))])


@emits("LRN")
def local_response(d: Draw, op: str) -> None:
    d.same(op, [image(d, op, ranks=(4,))], size=int(d.pick((1, 3))))
