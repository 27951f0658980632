"""Inline tensors of a message that are decoded once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnx_ir.serde import TensorProtoTensor

MAX_BYTES = 4096
"""Larger ones stay in the message alone: reading them is rare, and keeping them would double their memory."""

DATA_TYPES = {int(dtype): dtype for dtype in onnx_ir.DataType}
"""By number: asking the enumeration costs a call each time."""
_BITS = {dtype: dtype.bitwidth for dtype in onnx_ir.DataType if dtype.name not in ("UNDEFINED", "STRING")}
_WHOLE_BYTES: dict[onnx_ir.DataType, np.dtype[Any]] = {
    dtype: np.dtype(dtype.numpy()).newbyteorder("<")
    for dtype in onnx_ir.DataType
    if dtype not in (onnx_ir.DataType.UNDEFINED, onnx_ir.DataType.STRING) and dtype.bitwidth >= 8
}


class SmallTensor(TensorProtoTensor):
    """A tensor of a message, which builds its shape, type and array once instead of at every question."""

    __slots__ = ("_array", "_dtype", "_shape", "_size")

    def __init__(self, proto: onnx.TensorProto) -> None:
        super().__init__(proto)
        dims = list(proto.dims)
        self._dtype = DATA_TYPES[proto.data_type]
        self._shape = onnx_ir.Shape(dims, frozen=True)
        size = 1
        for dim in dims:
            size *= dim
        self._size = size
        self._array: np.ndarray | None = None

    @property
    # The protocol has attributes here, the base class properties without types.
    def dtype(self) -> onnx_ir.DataType:  # type: ignore[override]
        return self._dtype

    @property
    def shape(self) -> onnx_ir.Shape:  # type: ignore[override]
        return self._shape

    @property
    def size(self) -> int:
        return self._size

    @property
    def nbytes(self) -> int:
        return (self._size * _BITS[self._dtype] + 7) // 8

    def tobytes(self) -> bytes:
        data: bytes = self.raw.raw_data
        return data or super().tobytes()

    def numpy(self) -> np.ndarray:
        """The elements. Not to be written to: they are those of all who ask."""
        array = self._array
        if array is None:
            raw, whole = self.raw.raw_data, _WHOLE_BYTES.get(self._dtype)
            if raw and whole is not None:
                array = np.frombuffer(raw, dtype=whole).reshape(self._shape.numpy())
            else:
                array = super().numpy()
                array.setflags(write=False)
            self._array = array
        return array


def is_small(proto: onnx.TensorProto) -> bool:
    """Whether the tensor is inline, not text, and small."""
    if proto.data_location == onnx.TensorProto.EXTERNAL or proto.data_type == onnx.TensorProto.STRING:
        return False
    n_bytes: int = proto.ByteSize()
    return n_bytes <= MAX_BYTES
