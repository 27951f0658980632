"""What a Pad adds, read for the operators that can pad themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir
from opgraft.ir.program import constant_array, constant_ints, is_op
from opgraft.passes._pass import NoMatch


@dataclass(frozen=True)
class SpatialPadding:
    """A Pad with a constant along the spatial axes of [N, C, ...]."""

    value: onnx_ir.Value
    """What is padded."""
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    number: np.ndarray | None
    """The padding number as a scalar of the input's type; None stands for the default, zero."""


def spatial_padding(value: onnx_ir.Value | None, rank: int) -> SpatialPadding | NoMatch:
    """The Pad that makes `value`, of `rank` dims, or why it is none of [N, C, ...]'s spatial axes."""
    node = value.producer() if value is not None else None
    if node is None or not is_op(node, "Pad"):
        return NoMatch("the input is not padded", value)
    if any(a.is_ref() for a in node.attributes.values()):
        return NoMatch("the padding is a parameter of the function", node)
    mode = node.attributes.get("mode")
    if mode is not None and mode.as_string() != "constant":
        return NoMatch("the padding mode is {}", node, mode.as_string())
    amounts = _amounts(node, rank)
    if isinstance(amounts, NoMatch):
        return amounts
    begins, ends = amounts
    if any((*begins[:2], *ends[:2])):
        return NoMatch("batch or channels are padded", node)
    if min((*begins, *ends)) < 0:
        return NoMatch("the padding is negative: it crops", node)
    number = _number(node)
    x = node.inputs[0]
    if isinstance(number, NoMatch) or x is None:
        return number if isinstance(number, NoMatch) else NoMatch("the padded value is absent", node)
    return SpatialPadding(x, begins[2:], ends[2:], number)


def _amounts(node: onnx_ir.Node, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]] | NoMatch:
    """(before, after) per dim."""
    attribute = node.attributes.get("pads")  # before opset 11
    pads = list(attribute.as_ints()) if attribute is not None else constant_ints(node.inputs[1])
    if pads is None:
        return NoMatch("the padding is computed", node)
    axes: list[int] | None = list(range(rank))
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = constant_ints(node.inputs[3])
    if axes is None or len(pads) != 2 * len(axes):
        return NoMatch("the padded axes are not known", node)
    begins, ends = [0] * rank, [0] * rank
    for index, axis in enumerate(axes):
        begins[axis], ends[axis] = pads[index], pads[index + len(axes)]
    return tuple(begins), tuple(ends)


def _number(node: onnx_ir.Node) -> np.ndarray | NoMatch | None:
    attribute = node.attributes.get("value")  # before opset 11
    if attribute is not None:
        return np.asarray(attribute.as_float(), dtype=np.float32)
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return None
    array = constant_array(node.inputs[2])
    if array is None or array.size != 1:
        return NoMatch("the padding number is computed", node)
    return array.reshape(())


def is_positive_zero(number: np.ndarray | None) -> bool:
    """Whether a padding number is zero; minus zero is not what operators pad with."""
    return number is None or (number == 0 and not np.signbit(number.astype(np.float64)))


def own_pads(node: onnx_ir.Node, n_spatial: int) -> tuple[int, ...] | NoMatch:
    """The padding that a convolution or pooling has already: all begins, then all ends."""
    mode = node.attributes.get("auto_pad")
    if mode is not None and mode.as_string() not in ("NOTSET", "VALID"):
        return NoMatch("the operator chooses its padding by the size of its input", node)
    attribute = node.attributes.get("pads")
    if attribute is None or (mode is not None and mode.as_string() == "VALID"):
        return (0,) * (2 * n_spatial)
    pads = tuple(attribute.as_ints())
    if len(pads) != 2 * n_spatial or min(pads) < 0:
        return NoMatch("the operator crops or has an unusual padding", node)
    return pads
