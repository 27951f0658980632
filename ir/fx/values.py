"""What stands for an ONNX value while its FX graph is made: a tensor node, or numbers known one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir
import torch
from opgraft.ir.integer_contents import Elements, Sizes
from torch import fx

if TYPE_CHECKING:
    from opgraft.ir.fx.builder import Builder

DataType: TypeAlias = onnx_ir.DataType
Scalar: TypeAlias = "int | fx.Node"
"""A Python int, or a node whose value is one when the module runs (`sym_size` and arithmetic on it)."""
Scalars: TypeAlias = "list[Scalar] | fx.Node"
"""A list of scalars, or one node whose value is a list: the contents of a tensor that only a run tells."""

FOLLOWED = (DataType.INT64, DataType.INT32, DataType.BOOL)
"""Element types of shape arithmetic."""
MAX_FOLLOWED = 64
"""Shapes, pads and slice bounds have few elements; larger integer tensors are data."""

TORCH_TYPES = {
    DataType.FLOAT: torch.float32,
    DataType.DOUBLE: torch.float64,
    DataType.FLOAT16: torch.float16,
    DataType.BFLOAT16: torch.bfloat16,
    DataType.BOOL: torch.bool,
    DataType.INT8: torch.int8,
    DataType.INT16: torch.int16,
    DataType.INT32: torch.int32,
    DataType.INT64: torch.int64,
    DataType.UINT8: torch.uint8,
    DataType.UINT16: torch.uint16,
    DataType.UINT32: torch.uint32,
    DataType.UINT64: torch.uint64,
    DataType.COMPLEX64: torch.complex64,
    DataType.COMPLEX128: torch.complex128,
    DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    DataType.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    DataType.FLOAT8E5M2: torch.float8_e5m2,
    DataType.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    # torch has no arithmetic on smaller integers: they travel in bytes, within their own range.
    DataType.INT4: torch.int8,
    DataType.INT2: torch.int8,
    DataType.UINT4: torch.uint8,
    DataType.UINT2: torch.uint8,
}
SMALL_INTEGERS = {
    DataType.INT4: (-8, 7),
    DataType.UINT4: (0, 15),
    DataType.INT2: (-2, 1),
    DataType.UINT2: (0, 3),
}
WIDE_UNSIGNED = (DataType.UINT16, DataType.UINT32, DataType.UINT64)
"""Types that torch stores and converts but hardly computes with."""
REAL_FLOATS = (DataType.FLOAT16, DataType.BFLOAT16, DataType.FLOAT, DataType.DOUBLE)
"""The floating-point types that `dtype=` replaces."""


@dataclass(eq=False)
class FxValue:
    """One ONNX value in the graph of `owner`.

    At least one of `node`, `elements` and `constant` is set. `node` is made when a tensor is first asked for;
    `elements` is an object array of scalars in the tensor's shape.
    """

    owner: Builder
    dtype: DataType | None = None
    node: fx.Node | None = None
    elements: Elements | None = None
    constant: onnx_ir.TensorProtocol | None = None
    name: str = ""
    sizes: Sizes | None = None
    is_literal: bool = False
    """A constant written in the graph, not a weight that the module should keep."""

    @property
    def rank(self) -> int | None:
        return None if self.sizes is None else len(self.sizes)


def known(scalars: Scalars | None) -> list[int] | None:
    """The scalars when all of them are numbers."""
    if scalars is None or isinstance(scalars, fx.Node):
        return None
    numbers = [s for s in scalars if isinstance(s, int)]
    return numbers if len(numbers) == len(scalars) else None


def is_integer(dtype: DataType | None) -> bool:
    return dtype is not None and (dtype.is_integer() or dtype == DataType.BOOL)


def object_elements(scalars: Sequence[Scalar], shape: Sequence[int]) -> Elements:
    array = np.empty(len(scalars), dtype=object)
    for index, scalar in enumerate(scalars):
        array[index] = scalar
    return array.reshape(tuple(shape))


def array_of(tensor: onnx_ir.TensorProtocol) -> np.ndarray[Any, Any]:
    """The numbers of a tensor in a type that torch takes: small integers in bytes, the rest as it is."""
    array = tensor.numpy()
    if tensor.dtype in SMALL_INTEGERS:
        return array.astype(np.int8 if tensor.dtype in (DataType.INT4, DataType.INT2) else np.uint8)
    return array
