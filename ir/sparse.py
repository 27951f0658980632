"""Sparse tensors made dense: the IR has none, and the runtime makes them dense when it loads a model."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from opgraft.ir.errors import InputError
from opgraft.ir.validate_tensor import BITS, check_dims, check_tensor

_MAX_DENSE_BYTES = 1 << 30


def dense_tensor(sparse: onnx.SparseTensorProto, where: str) -> TensorProto:
    """The dense tensor a sparse one stands for: its values at its indices, zero elsewhere.

    Raises InputError when it is invalid or takes more than a gibibyte.
    """
    values, indices, dims = sparse.values, sparse.indices, list(sparse.dims)
    where = f"{where}: sparse tensor {values.name!r}"
    n_elements = check_dims(dims, "it", where)
    if check_tensor(values, where) or check_tensor(indices, where):
        raise InputError("external data of sparse tensors", where=where, remedy="save it with its data inside")
    bits = BITS.get(values.data_type, 0)
    if bits < 8 or n_elements * bits // 8 > _MAX_DENSE_BYTES:
        raise InputError(f"shape {dims} of element type {values.data_type} cannot be held dense", where=where)
    if len(values.dims) != 1 or indices.data_type != TensorProto.INT64:
        raise InputError("its values are not a list, or its indices not int64", where=where)
    positions = _linear_positions(numpy_helper.to_array(indices), values.dims[0], dims)
    if positions is None:
        raise InputError("its indices are not one per value, ascending, inside its shape", where=where)
    numbers = numpy_helper.to_array(values)
    dense = np.zeros(n_elements, dtype=numbers.dtype)
    dense[positions] = numbers
    return TensorProto(
        name=values.name,
        doc_string=values.doc_string,
        data_type=values.data_type,
        dims=dims,
        raw_data=dense.tobytes(),
    )


def _linear_positions(indices: np.ndarray, n_values: int, dims: list[int]) -> np.ndarray | None:
    """Indices as [n] positions in the flat tensor or [n, rank] coordinates, made flat; None when invalid."""
    if indices.shape == (n_values,):
        positions = indices
    elif indices.shape == (n_values, len(dims)):
        if (indices < 0).any() or (indices >= np.array(dims, np.int64)).any():
            return None
        strides = [int(np.prod(dims[axis + 1 :], dtype=np.int64)) for axis in range(len(dims))]
        positions = indices @ np.array(strides, np.int64)
    else:
        return None
    n_elements = int(np.prod(dims, dtype=np.int64))
    if n_values and (positions[0] < 0 or positions[-1] >= n_elements or (np.diff(positions) <= 0).any()):
        return None
    return positions
