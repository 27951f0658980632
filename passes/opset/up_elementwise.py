"""Upgrades of elementwise operators: legacy attributes, legacy broadcasting, clipping, casts, dropout."""

from __future__ import annotations

import numpy as np
import onnx_ir
from opgraft.passes.opset.site import CannotConvertError, Site
from opgraft.passes.opset.steps import Results, downgrade, upgrade


@upgrade(
    6,
    *[
        "Abs",
        "Add",
        "Ceil",
        "Clip",
        "Div",
        "Elu",
        "Exp",
        "Floor",
        "HardSigmoid",
        "InstanceNormalization",
        "LeakyRelu",
        "Log",
        "Max",
        "Mean",
        "Min",
        "Mul",
    ],
    *[
        "Neg",
        "PRelu",
        "Reciprocal",
        "Relu",
        "Sigmoid",
        "Sqrt",
        "Sub",
        "Sum",
        "Tanh",
        "BatchNormalization",
        "Dropout",
    ],
)
def drop_consumed_inputs(site: Site) -> Results:
    """`consumed_inputs` was a hint about memory and never changed a value."""
    return site.again(drop=["consumed_inputs"]) if "consumed_inputs" in site.node.attributes else None


@upgrade(6, "Selu")
def spell_selu_constants(site: Site) -> Results:
    """Selu-6 has more exact defaults; the old ones are written out."""
    return site.again(drop=["consumed_inputs"], alpha=site.attribute("alpha"), gamma=site.attribute("gamma"))


@upgrade(7, *["Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor"])
def align_operands(site: Site) -> Results:
    """op(A, B, broadcast=1, axis=k) -> op(A, Unsqueeze(B)): B's dims stood under A's dims k, k+1, ..."""
    if not {"axis", "broadcast"} & set(site.node.attributes):
        return None
    axis = site.attribute("axis") if site.attribute("broadcast") else None
    right = site.operand(1)
    if axis is not None and site.dims(1) != [] and not _is_single(site.dims(1)):
        right = _align(site, right, int(axis))
    return site.again((site.operand(0), right), drop=["axis", "broadcast"])


def _is_single(dims: list[int | None] | None) -> bool:
    return dims is not None and all(d == 1 for d in dims)


def _align(site: Site, right: onnx_ir.Value, axis: int) -> onnx_ir.Value:
    """Append the dims of size 1 that put B's dim 0 under A's dim `axis`."""
    rank_left, rank_right = site.rank(0), site.rank(1)
    if rank_left is not None and rank_right is not None:
        start = axis + rank_left if axis < 0 else axis
        missing = rank_left - start - rank_right
        if missing < 0:
            raise CannotConvertError(f"axis {axis} puts an operand of rank {rank_right} beyond rank {rank_left}")
        axes = list(range(rank_right, rank_right + missing))
        return site.emit_one("Unsqueeze", (right,), {"axes": axes}) if axes else right
    if axis < 0:
        raise CannotConvertError("negative broadcast axis on operands of unrecorded rank")
    shape_left = site.emit_one("Shape", (site.operand(0),))
    shape_right = site.emit_one("Shape", (right,))
    n_left, n_right = (site.emit_one("Size", (shape,)) for shape in (shape_left, shape_right))
    end = site.emit_one("Add", (n_right, site.literal(axis)))
    missing_dims = site.emit_one("Unsqueeze", (site.emit_one("Sub", (n_left, end)),), {"axes": [0]})
    # One element stands for all of A whatever the axis and its rank: then there is nothing to append.
    missing_dims = site.emit_one("Max", (missing_dims, site.literal([0])), version=12)
    ones = site.emit_one(
        "ConstantOfShape",
        (missing_dims,),
        {"value": onnx_ir.tensor(np.ones(1, dtype=np.int64))},
        version=9,
    )
    return site.emit_one("Reshape", (right, site.emit_one("Concat", (shape_right, ones), {"axis": 0})))


@upgrade(7, "PRelu")
def align_slope(site: Site) -> Results:
    """PRelu(x, slope[C]) -> PRelu(x, slope[C, 1, ..., 1]): the slope belonged to axis 1."""
    rank, slope_rank, slope = site.rank(0), site.rank(1), site.operand(1)
    if _is_single(site.dims(1)) or (slope_rank is not None and slope_rank != 1) or (rank or 3) <= 2:
        return None
    if rank is not None and slope_rank == 1:
        axes = list(range(1, rank - 1))
        return site.again((site.operand(0), site.emit_one("Unsqueeze", (slope,), {"axes": axes})))
    if slope_rank is None:
        raise CannotConvertError("the rank of the slope is not recorded; run shape inference first")
    n_dims = site.emit_one("Size", (site.emit_one("Shape", (site.operand(0),)),))
    trailing = site.emit_one("Sub", (site.emit_one("Unsqueeze", (n_dims,), {"axes": [0]}), site.literal([2])))
    ones = site.emit_one(
        "ConstantOfShape", (trailing,), {"value": onnx_ir.tensor(np.ones(1, dtype=np.int64))}, version=9
    )
    shape = site.emit_one("Concat", (site.literal([-1]), ones), {"axis": 0})
    return site.again((site.operand(0), site.emit_one("Reshape", (slope, shape))))


@upgrade(11, "Clip")
def clip_bounds_to_inputs(site: Site) -> Results:
    """Clip(x, min=a, max=b) -> Clip(x, a, b).

    The defaults are written out too: Clip-6 cut infinities down to the largest finite float32, and Clip-11
    without bounds lets them pass. (float16 has no such numbers; there the bound is an infinity.)
    """
    bounds: list[onnx_ir.Value | None] = []
    for name in ("min", "max"):
        number = float(site.attribute(name))
        with np.errstate(over="ignore"):
            is_limit = site.dtype() == onnx_ir.DataType.FLOAT16 and not np.isfinite(np.float16(number))
        bounds.append(None if is_limit else site.scalar_like(number))
    return site.again((site.operand(0), *bounds), drop=["min", "max"])


@upgrade(6, "Cast")
def spell_cast_type(site: Site) -> Results:
    """Cast(to="FLOAT") -> Cast(to=1)."""
    target = site.attribute("to")
    try:
        return site.again(to=int(onnx_ir.DataType[str(target).upper()]))
    except KeyError:
        raise CannotConvertError(f"unknown element type {target!r}") from None


@upgrade(7, "Dropout")
def require_test_mode(site: Site) -> Results:
    """Dropout-7 copies its input outside of training; a node in training mode is random."""
    if not site.attribute("is_test"):
        raise CannotConvertError("Dropout in training mode (is_test=0) is random")
    return site.again(drop=["is_test"])


@upgrade(10, "Dropout")
@downgrade(10, "Dropout")
def require_unread_mask(site: Site) -> Results:
    """The mask changed its type, and before version 12 nobody said what it holds outside of training."""
    if site.is_used(1):
        raise CannotConvertError("the mask of Dropout is read, and older versions leave it undefined")
    return None


@upgrade(12, "Dropout")
def ratio_to_input(site: Site) -> Results:
    """Dropout(x, ratio=r) -> Dropout(x, r): without `training_mode` it still copies."""
    require_unread_mask(site)
    ratio = site.literal(np.array(site.attribute("ratio"), dtype=np.float32))
    return site.again((site.operand(0), ratio), drop=["ratio"])


@upgrade(13, "Erf")
@upgrade(28, "ReduceLogSum", "ReduceLogSumExp")
def refuse_integers(site: Site) -> Results:
    """The newer version has no integer types, and how the older one rounded was never said."""
    dtype = site.dtype()
    if dtype is not None and not dtype.is_floating_point():
        raise CannotConvertError(f"{site.node.op_type} of {dtype.name.lower()} has no equivalent")
    return None


@upgrade(7, "Gemm")
def drop_gemm_broadcast(site: Site) -> Results:
    """C always broadcasts now."""
    return site.again(drop=["broadcast"]) if "broadcast" in site.node.attributes else None
