"""Upgrades of operators along axes: softmax over flattened input, axes and sizes that became inputs."""

from __future__ import annotations

import numpy as np
import onnx_ir
from opgraft.passes.opset.site import CannotConvertError, Site
from opgraft.passes.opset.steps import Results, upgrade

COMPOSITE_REDUCTIONS = [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
]


def single_axis(dims: list[int | None] | None, axis: int) -> int | None:
    """The one axis of `axis`, `axis`+1, ... that is not of size 1, as a negative number.

    Flattening [a_0 ... a_{k-1}, a_k ... a_{n-1}] to 2-D normalises over all of the second group; where only
    one of its dims can differ from 1, that is the same as normalising over that dim.
    """
    if dims is None:
        return None
    start = axis + len(dims) if axis < 0 else axis
    wide = [i for i in range(start, len(dims)) if dims[i] != 1]
    if len(wide) > 1 or start >= len(dims):
        return None
    return (wide[0] if wide else len(dims) - 1) - len(dims)


@upgrade(13, "Softmax", "LogSoftmax", "Hardmax")
def unflatten(site: Site) -> Results:
    """Softmax(x, axis=k) -> Reshape(Softmax(Flatten(x, axis=k), axis=-1), Shape(x))."""
    declared = site.node.attributes.get("axis")
    if declared is None or not declared.is_ref():
        axis = int(site.attribute("axis"))
        direct = -1 if axis == -1 else single_axis(site.dims(), axis)
        if direct is not None:
            return site.again(axis=direct)
        declared = onnx_ir.AttrInt64("axis", axis)
    x = site.operand(0)
    flat = site.emit_one("Flatten", (x,), [declared])
    result = site.again((flat,), axis=-1)[0]
    result.shape = None
    return [site.reshape(result, site.shape_of(x))]


@upgrade(13, "ReduceSum", "Squeeze", "Unsqueeze")
@upgrade(18, *COMPOSITE_REDUCTIONS)
def axes_to_input(site: Site) -> Results:
    """Reduce(x, axes=[...]) -> Reduce(x, [...]); no axes, or an empty list, still mean all of them."""
    declared = site.node.attributes.get("axes")
    if declared is None or (not declared.is_ref() and not declared.value):
        return site.again(drop=["axes"]) if declared is not None else None
    return site.again((site.operand(0), site.ints_from("axes")), drop=["axes"])


@upgrade(2, "Split")
def split_lengths_to_attribute(site: Site) -> Results:
    """Split-1 took its lengths from an attribute or from an input of the data's type."""
    if "axis" not in site.node.attributes:
        raise CannotConvertError("Split-1 without axis: the standard did not say which one")
    lengths = site.known_constant(1, "the lengths")
    if lengths is None:
        return None
    return site.again((site.operand(0),), split=[int(n) for n in lengths])


@upgrade(13, "Split")
def split_lengths_to_input(site: Site) -> Results:
    """Split(x, split=[...]) -> Split(x, [...])."""
    if "split" not in site.node.attributes:
        return None
    return site.again((site.operand(0), site.ints_from("split")), drop=["split"])


@upgrade(18, "Split")
def count_split_outputs(site: Site) -> Results:
    """Without lengths, the number of parts is now written out."""
    return None if site.input(1) is not None else site.again(num_outputs=len(site.node.outputs))


@upgrade(10, "Slice")
def slice_bounds_to_inputs(site: Site) -> Results:
    """Slice(x, starts=, ends=, axes=) -> Slice(x, starts, ends, axes)."""
    bounds = [site.ints_from(name) for name in ("starts", "ends", "axes")]
    return site.again((site.operand(0), *bounds), drop=["starts", "ends", "axes"])


@upgrade(4, "Concat")
def spell_concat_axis(site: Site) -> Results:
    """The axis was 1 when it was not given."""
    return None if "axis" in site.node.attributes else site.again(axis=1)


@upgrade(5, "Reshape")
def shape_to_input(site: Site) -> Results:
    """Reshape(x, shape=[...]) -> Reshape(x, [...])."""
    shape = site.ints_from("shape")
    if shape is None:
        raise CannotConvertError("Reshape-1 without a shape")
    return site.again((site.operand(0), shape), drop=["shape", "consumed_inputs"])


@upgrade(6, "Tile")
def tile_one_axis(site: Site) -> Results:
    """Tile(x, tiles, axis) -> Tile(x, repeats): ones, with `tiles` at `axis`."""
    tiles, axis, rank = site.constant(1), site.constant(2), site.rank()
    if tiles is not None and axis is not None and rank is not None:
        repeats = np.ones(rank, dtype=np.int64)
        repeats[int(axis.item())] = int(tiles.item())
        return site.again((site.operand(0), site.literal(repeats)))
    count, place = (
        site.emit_one("Reshape", (site.emit_one("Cast", (site.operand(i),), {"to": 7}), site.literal([1])))
        for i in (1, 2)
    )
    n_dims = site.emit_one("Size", (site.emit_one("Shape", (site.operand(0),)),))
    choice = site.emit_one("Concat", (site.literal([1]), count), {"axis": 0})
    row = site.emit_one("OneHot", (place, n_dims, choice), version=11)
    return site.again((site.operand(0), site.emit_one("Reshape", (row, site.literal([-1])))))


@upgrade(10, "TopK")
def k_to_input(site: Site) -> Results:
    """TopK(x, k=n) -> TopK(x, [n])."""
    k = site.ints_from("k", scalar=True)
    if k is None:
        raise CannotConvertError("TopK without k")
    number = site.attribute("k") if not site.node.attributes["k"].is_ref() else None
    count = site.literal([int(number)]) if number is not None else site.emit_one("Reshape", (k, site.literal([1])))
    return site.again((site.operand(0), count), drop=["k"])


@upgrade(2, "Pad")
def rename_paddings(site: Site) -> Results:
    """The attribute `paddings` was renamed to `pads`."""
    return site.again(drop=["paddings"], pads=site.attribute("paddings"))


@upgrade(11, "Pad")
def pads_to_inputs(site: Site) -> Results:
    """Pad(x, pads=[...], value=v) -> Pad(x, [...], v)."""
    fill = float(site.attribute("value"))
    constant = site.scalar_like(fill) if site.attribute("mode") == "constant" and fill != 0 else None
    return site.again((site.operand(0), site.ints_from("pads"), constant), drop=["pads", "value"])


@upgrade(20, "DFT")
def dft_axis_to_input(site: Site) -> Results:
    """DFT(x, n, axis=k) -> DFT(x, n, k): the default moved from 1 to -2."""
    return site.again((site.operand(0), site.input(1), site.ints_from("axis", scalar=True)), drop=["axis"])


@upgrade(11, "Scatter")
def rename_scatter(site: Site) -> Results:
    """Scatter was renamed to ScatterElements."""
    return site.again(op_type="ScatterElements")
