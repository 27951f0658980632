"""Operators that early releases shipped as experimental and later ones dropped from the standard.

Old files still hold them (Caffe2, CNTK and Core ML exporters wrote them), and the schemas are gone.
Source: docs/Operators.md of onnx 1.2 to 1.4, section "experimental".
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir
from opgraft.passes.opset.site import CannotConvertError, Site

WRITTEN_AT = 10
"""The opset in which the replacements are written; conversion goes on from there."""


def _number(site: Site, name: str, default: float) -> float:
    attribute = site.node.attributes.get(name)
    return default if attribute is None else float(attribute.value)


def _flag(site: Site, name: str, default: int) -> bool:
    attribute = site.node.attributes.get(name)
    return bool(default if attribute is None else attribute.value)


def thresholded_relu(site: Site) -> list[onnx_ir.Value]:
    """The same as ThresholdedRelu-10."""
    return site.again()


def dynamic_slice(site: Site) -> list[onnx_ir.Value]:
    """DynamicSlice(x, starts, ends, axes) is Slice-10 without steps."""
    return site.again(op_type="Slice")


def mean_variance_normalization(site: Site) -> list[onnx_ir.Value]:
    """Over [H, W], or [C, H, W] with `across_channels`; the variance only where it is asked for."""
    if not _flag(site, "normalize_variance", 1):
        raise CannotConvertError("MeanVarianceNormalization without the variance")
    axes = [0, 1, 2, 3] if _flag(site, "across_channels", 0) else [0, 2, 3]
    return site.again(drop=["across_channels", "normalize_variance"], axes=axes)


def constant_fill(site: Site) -> list[onnx_ir.Value]:
    """ConstantFill(shape, value=v) -> ConstantOfShape(shape, value=[v])."""
    known = {"dtype", "extra_shape", "input_as_shape", "shape", "value"}
    if set(site.node.attributes) - known:
        raise CannotConvertError("ConstantFill with unknown attributes")
    extra = list(site.node.attributes["extra_shape"].value) if "extra_shape" in site.node.attributes else []
    dtype = onnx_ir.DataType(int(_number(site, "dtype", 1)))
    fill = onnx_ir.tensor(np.array([_number(site, "value", 0.0)]).astype(dtype.numpy()))
    shape: onnx_ir.Value
    if site.input(0) is None:
        shape = site.literal([int(d) for d in site.node.attributes["shape"].value])
    elif _flag(site, "input_as_shape", 0):
        shape = site.operand(0)
    else:
        shape = site.emit_one("Shape", (site.operand(0),))
    if extra:
        shape = site.emit_one("Concat", (shape, site.literal([int(d) for d in extra])), {"axis": 0})
    return site.emit("ConstantOfShape", (shape,), {"value": fill})


def affine(site: Site) -> list[onnx_ir.Value]:
    """alpha * x + beta."""
    scaled = site.emit_one("Mul", (site.operand(0), site.scalar_like(_number(site, "alpha", 1.0))))
    return site.emit("Add", (scaled, site.scalar_like(_number(site, "beta", 0.0))))


def scale(site: Site) -> list[onnx_ir.Value]:
    """x * scale."""
    return site.emit("Mul", (site.operand(0), site.scalar_like(_number(site, "scale", 1.0))))


def scaled_tanh(site: Site) -> list[onnx_ir.Value]:
    """alpha * tanh(beta * x)."""
    inner = site.emit_one("Mul", (site.operand(0), site.scalar_like(_number(site, "beta", 1.0))))
    return site.emit("Mul", (site.emit_one("Tanh", (inner,)), site.scalar_like(_number(site, "alpha", 1.0))))


def parametric_softplus(site: Site) -> list[onnx_ir.Value]:
    """alpha * log(exp(beta * x) + 1)."""
    inner = site.emit_one("Mul", (site.operand(0), site.scalar_like(_number(site, "beta", 1.0))))
    return site.emit("Mul", (site.emit_one("Softplus", (inner,)), site.scalar_like(_number(site, "alpha", 1.0))))


def image_scaler(site: Site) -> list[onnx_ir.Value]:
    """x * scale + bias[C, 1, 1]."""
    bias = np.array(site.node.attributes["bias"].value, dtype=np.float32).reshape(-1, 1, 1)
    scaled = site.emit_one("Mul", (site.operand(0), site.scalar_like(_number(site, "scale", 1.0))))
    return site.emit("Add", (scaled, site.literal(bias)))


EXPERIMENTAL: dict[str, Callable[[Site], list[onnx_ir.Value]]] = {
    "Affine": affine,
    "ConstantFill": constant_fill,
    "DynamicSlice": dynamic_slice,
    "ImageScaler": image_scaler,
    "MeanVarianceNormalization": mean_variance_normalization,
    "ParametricSoftplus": parametric_softplus,
    "Scale": scale,
    "ScaledTanh": scaled_tanh,
    "ThresholdedRelu": thresholded_relu,
}
"""Operators of the default domain in files whose opset has no schema for them."""
