"""Downgrades: inputs become attributes again, which needs them to be constant."""

from __future__ import annotations

import numpy as np
import onnx_ir
from opgraft.passes.opset.conformity import fit_older_schema
from opgraft.passes.opset.site import CannotConvertError, Site
from opgraft.passes.opset.steps import Results, downgrade
from opgraft.passes.opset.up_axes import COMPOSITE_REDUCTIONS, single_axis
from opgraft.passes.opset.up_elementwise import require_unread_mask

_PLAIN_REDUCTIONS = frozenset({"ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"})


@downgrade(13, "Expand")
def require_list_of_sizes(site: Site) -> Results:
    """The runtime takes a matrix of sizes since opset 13."""
    if site.rank(1) not in (None, 1):
        raise CannotConvertError("the sizes are no list")
    return None


@downgrade(13, "ReduceSum", "Squeeze", "Unsqueeze")
@downgrade(18, *COMPOSITE_REDUCTIONS)
def axes_to_attribute(site: Site) -> Results:
    """Reduce(x, [...]) -> Reduce(x, axes=[...])."""
    axes = site.known_constant(1, "the axes")
    if axes is not None and axes.size:
        return site.again((site.operand(0),), drop=["noop_with_empty_axes"], axes=[int(a) for a in axes.ravel()])
    if site.attribute("noop_with_empty_axes"):
        if site.node.op_type in _PLAIN_REDUCTIONS:
            return [site.emit_one("Identity", (site.operand(0),))]
        raise CannotConvertError("noop_with_empty_axes of a composite reduction")
    if axes is not None and site.node.op_type == "Unsqueeze":
        return [site.emit_one("Identity", (site.operand(0),))]
    return site.again((site.operand(0),), drop=["noop_with_empty_axes"])


@downgrade(18, "Split")
def split_lengths_from_count(site: Site) -> Results:
    """Split(x, num_outputs=n) -> Split(x, [ceil(d / n), ..., rest]).

    Without lengths, the older version required parts of the same size.
    """
    if "num_outputs" not in site.node.attributes:
        return None
    count, axis, dims = int(site.attribute("num_outputs")), int(site.attribute("axis")), site.dims()
    size = dims[axis] if dims is not None else None
    if size is not None and size % count == 0:
        return site.again(drop=["num_outputs"])
    if size is not None:
        part = -(-size // count)
        lengths = [part] * (count - 1) + [size - part * (count - 1)]
        return site.again((site.operand(0), site.literal(lengths)), drop=["num_outputs"])
    shape = site.emit_one("Shape", (site.operand(0),))
    total = site.emit_one("Gather", (shape, site.literal([axis])))
    rounded = site.emit_one("Add", (total, site.literal([count - 1])))
    part_value = site.emit_one("Div", (rounded, site.literal([count])))
    head = site.emit_one("Mul", (part_value, site.literal([count - 1])))
    rest = site.emit_one("Sub", (total, head))
    parts = site.emit_one("Concat", [*[part_value] * (count - 1), rest], {"axis": 0})
    return site.again((site.operand(0), parts), drop=["num_outputs"])


@downgrade(13, "Split")
def split_lengths_to_attribute(site: Site) -> Results:
    """Split(x, [...]) -> Split(x, split=[...])."""
    lengths = site.known_constant(1, "the lengths")
    return None if lengths is None else site.again((site.operand(0),), split=[int(n) for n in lengths])


@downgrade(10, "Slice")
def slice_bounds_to_attributes(site: Site) -> Results:
    """Slice(x, starts, ends, axes) -> Slice(x, starts=, ends=, axes=): steps of 1 only."""
    names = ("starts", "ends", "axes", "steps")
    bounds = {n: site.known_constant(i, f"`{n}`") for i, n in enumerate(names, start=1)}
    steps = bounds.pop("steps")
    if steps is not None and np.any(steps != 1):
        raise CannotConvertError("Slice with steps other than 1")
    lists = {n: None if b is None else [int(v) for v in b] for n, b in bounds.items()}
    axes = lists["axes"]
    if axes is not None and any(a < 0 for a in axes):
        rank = site.known_rank()
        lists["axes"] = [a + rank if a < 0 else a for a in axes]
    return site.again((site.operand(0),), starts=lists["starts"], ends=lists["ends"], axes=lists["axes"])


@downgrade(18, "Pad")
def pad_all_axes(site: Site) -> Results:
    """Pad(x, pads, value, axes) -> Pad(x, pads of all axes, value)."""
    axes = site.known_constant(3, "the axes")
    if axes is None:
        return None
    rank, given = site.known_rank(), site.known_constant(1, "the pads")
    if given is None:
        raise CannotConvertError("Pad without pads")
    full = np.zeros((2, rank), dtype=np.int64)
    full[:, axes.astype(np.int64)] = given.reshape(2, -1)
    return site.again((site.operand(0), site.literal(full.ravel()), site.input(2)))


@downgrade(11, "Pad")
def pads_to_attributes(site: Site) -> Results:
    """Pad(x, [...], v) -> Pad(x, pads=[...], value=v)."""
    pads, fill = site.known_constant(1, "the pads"), site.known_constant(2, "the fill value")
    if pads is None:
        raise CannotConvertError("Pad without pads")
    value = 0.0 if fill is None else float(fill.item())
    return site.again((site.operand(0),), pads=[int(p) for p in pads], value=value)


@downgrade(11, "Clip")
def clip_bounds_to_attributes(site: Site) -> Results:
    """Clip(x, a, b) -> Clip(x, min=a, max=b); an absent bound becomes an infinity, not the old default."""
    bounds = {"min": -np.inf, "max": np.inf}
    for index, name in enumerate(("min", "max"), start=1):
        array = site.known_constant(index, f"`{name}`")
        if array is not None:
            bounds[name] = float(array.item())
            if np.float32(bounds[name]) != bounds[name] and not np.isnan(bounds[name]):
                raise CannotConvertError(f"`{name}` is no float32 number")
    return site.again((site.operand(0),), min=bounds["min"], max=bounds["max"])


@downgrade(12, "Dropout")
def ratio_to_attribute(site: Site) -> Results:
    """Dropout(x, r) -> Dropout(x, ratio=r), outside of training."""
    require_unread_mask(site)
    training = site.known_constant(2, "the training mode")
    if training is not None and bool(training.item()):
        raise CannotConvertError("Dropout in training mode is random")
    ratio = site.constant(1)
    return site.again((site.operand(0),), drop=["seed"], ratio=0.5 if ratio is None else float(ratio.item()))


@downgrade(11, "TopK")
def require_largest(site: Site) -> Results:
    """Only the largest, sorted; sorted results also serve those who do not ask for an order."""
    if not site.attribute("largest"):
        raise CannotConvertError("TopK of the smallest elements")
    axis = int(site.attribute("axis"))
    if axis < -1:
        axis += site.known_rank()
    return site.again(drop=["largest", "sorted"], axis=axis)


@downgrade(10, "TopK")
def k_to_attribute(site: Site) -> Results:
    """TopK(x, [n]) -> TopK(x, k=n)."""
    k = site.known_constant(1, "k")
    return None if k is None else site.again((site.operand(0),), k=int(k.item()))


@downgrade(13, "Softmax", "LogSoftmax", "Hardmax")
def move_axis_last(site: Site) -> Results:
    """Softmax(x, axis=k) -> Transpose(Softmax(Transpose(x), axis=-1)).

    The old one flattened dim k and all that follow into one.
    """
    axis, rank = int(site.attribute("axis")), site.rank()
    if axis == -1 or (rank is not None and axis == rank - 1):
        return site.again(axis=-1 if site.version >= 11 else site.known_rank() - 1)
    rank = site.known_rank()
    start = axis % rank
    if single_axis(site.dims(), start) == start - rank:
        return site.again(axis=start)
    swap = [rank - 1 if i == start else start if i == rank - 1 else i for i in range(rank)]
    turned = site.emit_one("Transpose", (site.operand(0),), {"perm": swap})
    result = site.again((turned,), axis=rank - 1)[0]
    result.shape = None
    return [site.emit_one("Transpose", (result,), {"perm": swap})]


@downgrade(14, "Reshape")
def require_no_zero_size(site: Site) -> Results:
    """`allowzero` matters only where the shape holds a zero."""
    if not site.attribute("allowzero"):
        return None
    shape = site.constant(1)
    if shape is None or np.any(shape == 0):
        raise CannotConvertError("Reshape to a size of zero (allowzero=1)")
    return site.again(drop=["allowzero"])


@downgrade(15, "Shape")
def slice_shape(site: Site) -> Results:
    """Shape(x, start=a, end=b) -> Slice(Shape(x), a, b)."""
    start, end = int(site.attribute("start") or 0), site.attribute("end")
    if start == 0 and end is None:
        return None
    full = site.emit_one("Shape", (site.operand(0),))
    stop = np.iinfo(np.int64).max if end is None else int(end)
    return [site.emit_one("Slice", (full, site.literal([start]), site.literal([stop])))]


@downgrade(11, "Gemm")
def spell_absent_addend(site: Site) -> Results:
    """C was required: a zero serves."""
    if site.input(2) is not None:
        return None
    return site.again((site.operand(0), site.operand(1), site.scalar_like(0.0)))


@downgrade(20, "DFT")
def dft_axis_to_attribute(site: Site) -> Results:
    """DFT(x, n, k) -> DFT(x, n, axis=k)."""
    axis = site.known_constant(2, "the axis")
    return site.again(site.node.inputs[:2], axis=-2 if axis is None else int(axis.item()))


@downgrade(14, "BatchNormalization")
def require_inference(site: Site) -> Results:
    """The training outputs of version 9 were others."""
    if site.attribute("training_mode"):
        raise CannotConvertError("BatchNormalization in training mode")
    return site.again(drop=["training_mode"], n_outputs=1) + [None] * (len(site.node.outputs) - 1)


@downgrade(13, "QuantizeLinear", "DequantizeLinear")
def require_per_tensor(site: Site) -> Results:
    """Scales per axis came with version 13."""
    scale = site.dims(1)
    if scale is None or any(d != 1 for d in scale):
        raise CannotConvertError("quantization per axis, or a scale of unrecorded shape")
    return site.again(drop=["axis"])


@downgrade(21, "QuantizeLinear")
def zero_point_for_type(site: Site) -> Results:
    """QuantizeLinear(x, s, output_dtype=T) -> QuantizeLinear(x, s, zero of type T)."""
    wanted = int(site.attribute("output_dtype"))
    if not wanted or site.input(2) is not None:
        return fit_older_schema(site) if not wanted else _drop_output_dtype(site)
    dims = site.dims(1)
    if dims is None or any(d is None for d in dims):
        raise CannotConvertError("output_dtype with a scale of unrecorded shape")
    zero = site.literal(np.zeros([d or 0 for d in dims], dtype=onnx_ir.DataType(wanted).numpy()))
    return site.again((site.operand(0), site.operand(1), zero), drop=["output_dtype"])


def _drop_output_dtype(site: Site) -> Results:
    return site.again(drop=["output_dtype"])


@downgrade(12, "Constant")
def constant_to_tensor(site: Site) -> Results:
    """Constant(value_floats=[...]) -> Constant(value=tensor)."""
    name, attribute = next(iter(site.node.attributes.items()))
    if name in ("value", "sparse_value"):
        return None
    value = site.attribute(name)
    kinds = {
        "value_int": np.int64,
        "value_ints": np.int64,
        "value_float": np.float32,
        "value_floats": np.float32,
    }
    if name not in kinds or attribute.is_ref():
        raise CannotConvertError(f"a constant given as {name}")
    return [site.literal(np.array(value, dtype=kinds[name]))]


@downgrade(11, "ScatterElements")
def rename_to_scatter(site: Site) -> Results:
    """ScatterElements was called Scatter; indices counted from the front."""
    axis = int(site.attribute("axis"))
    return site.again(op_type="Scatter", axis=axis if axis >= 0 else axis + site.known_rank())


@downgrade(28, "Mod")
def require_defined_remainder(site: Site) -> Results:
    """Floored division of floats came with version 28."""
    dtype = site.dtype()
    if not site.attribute("fmod") and (dtype is None or dtype.is_floating_point()):
        raise CannotConvertError("the floored remainder of floats, or of numbers of unrecorded type")
    return None


@downgrade(13, "Erf")
@downgrade(28, "ReduceLogSum", "ReduceLogSumExp")
def keep_floats(site: Site) -> Results:
    """The older version took integers besides."""
    return fit_older_schema(site) or site.again()


@downgrade(8, "Max", "Mean", "Min", "Sum")
def require_equal_shapes(site: Site) -> Results:
    """Before version 8 all operands were of one shape."""
    shapes = [_spelled_dims(site, index) for index in range(len(site.node.inputs))]
    if len(shapes) > 1 and (None in shapes or any(shape != shapes[0] for shape in shapes)):
        raise CannotConvertError(f"opset {site.version} does not broadcast, and the operands may be of other shapes")
    return None


def _spelled_dims(site: Site, index: int) -> list[int | str] | None:
    """The dims of an input, dynamic ones by their names; None when one of them has no name."""
    shape = site.operand(index).shape
    dims = site.dims(index) if shape is None else [d if isinstance(d, int) else d.value for d in shape]
    known = [d for d in dims or () if d is not None]
    return known if dims is not None and len(known) == len(dims) else None
