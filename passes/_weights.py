"""Weights made from other weights: computed in float64, rounded once, and when large only while they are written.

A large result is an `onnx_ir.LazyTensor` without a cache: nothing is read until the program is saved, and then one
tensor at a time is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir
from opgraft.ir.program import constant_array, is_op
from opgraft.passes._pass import NoMatch

# Below this a weight is computed at once: the later checks of other passes can read it.
_MAX_EAGER_BYTES = 1 << 16
# Elements widened to float64 at a time.
_BLOCK_ELEMENTS = 1 << 18
# Factors beyond these could take ordinary weights out of float32's range, which the original's results stay in.
_MIN_FACTOR, _MAX_FACTOR = 2.0**-64, 2.0**64

ROUNDABLE = (onnx_ir.DataType.FLOAT, onnx_ir.DataType.DOUBLE)
"""Types whose weights may be changed: half precision would lose more by one more rounding than NUMERIC allows."""


def derive(
    n_source_bytes: int, dtype: onnx_ir.DataType, shape: Sequence[int], make: Callable[[], np.ndarray]
) -> onnx_ir.TensorProtocol:
    """The tensor that `make` computes: now, or when it is written if it is made of much data."""

    def tensor() -> onnx_ir.TensorProtocol:
        return onnx_ir.Tensor(np.ascontiguousarray(make()), dtype=dtype)

    if n_source_bytes <= _MAX_EAGER_BYTES:
        return tensor()
    return onnx_ir.LazyTensor(tensor, dtype, onnx_ir.Shape(shape), cache=False)


def dims_of(tensor: onnx_ir.TensorProtocol) -> tuple[int, ...]:
    """The shape of a tensor with data: all its dims are numbers."""
    return tuple(d for d in tensor.shape if isinstance(d, int))


@dataclass(frozen=True)
class ChannelView:
    """A weight seen so that its channels can be scaled: reshaped to `view`, its factors to `factors`."""

    view: tuple[int, ...]
    factors: tuple[int, ...]

    @property
    def n_channels(self) -> int:
        return prod(self.factors)


def output_channels(node: onnx_ir.Node, shape: Sequence[int]) -> ChannelView:
    """Output channels of the weight of Conv [M, C/g, ...], ConvTranspose [C, M/g, ...], Gemm or MatMul [K, N]."""
    shape = tuple(shape)
    if is_op(node, "Conv"):
        return _along(shape, 0)
    if is_op(node, "ConvTranspose"):
        return _along_grouped(shape, _groups(node))
    return _along(shape, 0 if is_op(node, "Gemm") and int_attribute(node, "transB", 0) else 1)


def input_channels(node: onnx_ir.Node, shape: Sequence[int]) -> ChannelView:
    """Input channels of the same weights."""
    shape = tuple(shape)
    if is_op(node, "Conv"):
        return _along_grouped(shape, _groups(node))
    if is_op(node, "ConvTranspose"):
        return _along(shape, 0)
    return _along(shape, 1 if is_op(node, "Gemm") and int_attribute(node, "transB", 0) else 0)


def _along(shape: tuple[int, ...], axis: int) -> ChannelView:
    return ChannelView(shape, tuple(n if i == axis else 1 for i, n in enumerate(shape)))


def _along_grouped(shape: tuple[int, ...], groups: int) -> ChannelView:
    """Channels that run over the groups of axis 0 and within each over axis 1."""
    if groups == 1:
        return _along(shape, 1)
    view = (groups, shape[0] // groups, *shape[1:])
    return ChannelView(view, (groups, 1, shape[1], *(1 for _ in shape[2:])))


def _groups(node: onnx_ir.Node) -> int:
    return int_attribute(node, "group", 1)


def int_attribute(node: onnx_ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else default


def float_attribute(node: onnx_ir.Node, name: str, default: float) -> float:
    """A float32 attribute as the number the runtime sees."""
    attribute = node.attributes.get(name)
    return float(np.float32(attribute.as_float() if attribute is not None else default))


def check_factors(factors: np.ndarray, where: object) -> NoMatch | None:
    """Whether a weight can be multiplied by these without leaving its type's range."""
    size = np.abs(factors)
    if not np.isfinite(size).all():
        return NoMatch("a factor is not finite", where)
    if bool((size > _MAX_FACTOR).any()) or bool(((size < _MIN_FACTOR) & (size > 0)).any()):
        return NoMatch("a factor is beyond 2**64 or below 2**-64", where)
    return None


def scale(tensor: onnx_ir.TensorProtocol, channels: ChannelView, factors: np.ndarray) -> onnx_ir.TensorProtocol:
    """`tensor` with each channel multiplied by its factor (float64, one per channel or one for all)."""
    shape = dims_of(tensor)
    spread = factors.reshape(channels.factors if factors.size > 1 else (1,) * len(channels.view))

    def make() -> np.ndarray:
        return _multiply(tensor.numpy().reshape(channels.view), spread).reshape(shape)

    return derive(tensor.nbytes, tensor.dtype, shape, make)


def _multiply(array: np.ndarray, factors: np.ndarray) -> np.ndarray:
    result = np.empty_like(array)
    rows = max(1, _BLOCK_ELEMENTS // max(1, array[:1].size))
    for begin in range(0, array.shape[0], rows):
        part = slice(begin, begin + rows)
        block = array[part].astype(np.float64)
        block *= factors if factors.shape[0] == 1 else factors[part]
        result[part] = block
    return result


def transpose(tensor: onnx_ir.TensorProtocol, factor: float = 1.0) -> onnx_ir.TensorProtocol:
    """The matrix `tensor` [N, K] as `factor` times its transpose [K, N]."""
    n_rows, n_columns = dims_of(tensor)

    def make() -> np.ndarray:
        array = tensor.numpy()
        if factor != 1.0:
            array = _multiply(array, np.full((1, 1), factor))
        return _transpose_blocks(array)

    return derive(tensor.nbytes, tensor.dtype, (n_columns, n_rows), make)


def _transpose_blocks(array: np.ndarray, block: int = 512) -> np.ndarray:
    """A contiguous transpose in tiles that stay in the processor's cache."""
    result = np.empty(array.shape[::-1], dtype=array.dtype)
    for row in range(0, array.shape[0], block):
        for column in range(0, array.shape[1], block):
            tile = array[row : row + block, column : column + block]
            result[column : column + block, row : row + block] = tile.T
    return result


def round_to(array: np.ndarray, dtype: onnx_ir.DataType) -> np.ndarray:
    """float64 results as the type of the weights."""
    return array.astype(dtype.numpy())


def channel_bias(value: onnx_ir.Value | None, n_channels: int, node: onnx_ir.Node) -> np.ndarray | NoMatch:
    """A constant bias as float64 [M] or [1]; zero where there is none."""
    if value is None:
        return np.zeros(1)
    array = constant_array(value)
    if array is None:
        return NoMatch("the bias is computed", value)
    # A bias [1, M], [M] or [1] differs by channel alone; [M, 1] or [B, M] does not.
    if array.ndim > 2 or array.size not in (1, n_channels) or (array.size > 1 and array.shape[-1] != n_channels):
        return NoMatch("a bias of shape {} is not one number per channel", value, list(array.shape))
    return array.astype(np.float64).reshape(-1)


def check_single_use(value: onnx_ir.Value | None, user: onnx_ir.Node) -> NoMatch | None:
    """Whether `user` alone reads `value`: what makes it may then be changed."""
    if value is None or value.is_graph_output() or any(use.node is not user for use in value.uses()):
        return NoMatch("the result before it has other users", value)
    producer = value.producer()
    if producer is not None and producer.graph is not user.graph:
        return NoMatch("the result before it is computed once outside this graph", value)
    return None


def check_literal(node: onnx_ir.Node) -> NoMatch | None:
    """Whether all attributes are known here: in a function they may be parameters of it."""
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return NoMatch("attribute {!r} is a parameter of the function", node, name)
    return None
