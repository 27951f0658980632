"""The frames between executor and worker: a JSON header, then the raw little-endian bytes of its tensors.

    frame  = header length (8 bytes, little-endian), header (JSON, UTF-8), buffers
    header = {..., "buffers": [bytes of each buffer]}

A value in a header is null (an absent optional), `{"tensor": [element type, shape, buffer]}`,
`{"sequence": [values]}` or `{"map": [[key, value], ...]}`. Buffers hold tensors as ONNX's `raw_data` does
(4-bit and 2-bit elements packed, lowest bits first); string tensors hold all lengths as int64, then the UTF-8
text.
Nothing is pickled, so neither side can be made to run code by what it reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Value: TypeAlias = "Array | list[Value] | dict[Any, Value] | None"
"""What a model takes and returns: a tensor, nothing (optional), a sequence, or a map of `ai.onnx.ml`."""

STRING = 8
BFLOAT16 = 16
# TensorProto.DataType numbers whose elements numpy knows itself.
NATIVE_TYPES = {
    1: "<f4",
    2: "|u1",
    3: "|i1",
    4: "<u2",
    5: "<i2",
    6: "<i4",
    7: "<i8",
    9: "|b1",
    10: "<f2",
    11: "<f8",
    12: "<u4",
    13: "<u8",
    14: "<c8",
    15: "<c16",
}
# The others, as ml_dtypes names them: element type, bits of an element.
EXTENDED_TYPES = {
    "bfloat16": (BFLOAT16, 16),
    "float8_e4m3fn": (17, 8),
    "float8_e4m3fnuz": (18, 8),
    "float8_e5m2": (19, 8),
    "float8_e5m2fnuz": (20, 8),
    "uint4": (21, 4),
    "int4": (22, 4),
    "float4_e2m1fn": (23, 4),
    "float8_e8m0fnu": (24, 8),
    "uint2": (25, 2),
    "int2": (26, 2),
}
_NATIVE_BY_DTYPE = {np.dtype(name): number for number, name in NATIVE_TYPES.items()}
_EXTENDED_BY_NUMBER = {number: (name, bits) for name, (number, bits) in EXTENDED_TYPES.items()}
_MAX_HEADER_BYTES = 1 << 28
# Alignment of ONNX Runtime's own allocations: a tensor read from a pipe is laid out like one of its own.
_ALIGNMENT_BYTES = 64


class ProtocolError(RuntimeError):
    """The other side sent something that is not a frame."""


@dataclass(frozen=True)
class RawTensor:
    """A tensor on the wire; `data` is `raw_data` as a flat uint8 array."""

    element_type: int
    shape: tuple[int, ...]
    data: Array

    @property
    def is_native(self) -> bool:
        return self.element_type in NATIVE_TYPES or self.element_type == STRING


WireValue: TypeAlias = "RawTensor | list[WireValue] | dict[Any, WireValue] | None"


def aligned_buffer(n_bytes: int) -> Array:
    storage = np.empty(n_bytes + _ALIGNMENT_BYTES, np.uint8)
    skip = -storage.ctypes.data % _ALIGNMENT_BYTES
    return storage[skip : skip + n_bytes]


def to_raw(value: Any) -> WireValue:
    """Arrays, None, sequences and maps of them, as they go over the wire. TypeError for another dtype."""
    if value is None or isinstance(value, RawTensor):
        return value
    if isinstance(value, (list, tuple)):
        return [to_raw(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_raw(item) for key, item in value.items()}
    array = np.asarray(value)
    if array.dtype.kind in "OUS":
        return RawTensor(STRING, array.shape, _pack_strings(array))
    extended = EXTENDED_TYPES.get(array.dtype.name)
    if extended:
        number, bits = extended
        return RawTensor(
            number, array.shape, _pack(_flat_bytes(array), bits) if bits < 8 else _flat_bytes(array)
        )
    little_endian = array.dtype.newbyteorder("<")
    if little_endian not in _NATIVE_BY_DTYPE:
        raise TypeError(f"no ONNX tensor has elements of numpy type {array.dtype}")
    array = array.astype(little_endian, copy=False)
    return RawTensor(_NATIVE_BY_DTYPE[little_endian], array.shape, _flat_bytes(array))


def from_raw(value: WireValue) -> Value:
    """Undo `to_raw`; types numpy lacks come back as ml_dtypes arrays, strings as object arrays of `str`."""
    if value is None:
        return None
    if isinstance(value, list):
        return [from_raw(item) for item in value]
    if isinstance(value, dict):
        return {key: from_raw(item) for key, item in value.items()}
    if value.element_type == STRING:
        return _unpack_strings(value.data, value.shape)
    if value.element_type in NATIVE_TYPES:
        return value.data.view(NATIVE_TYPES[value.element_type]).reshape(value.shape)
    import ml_dtypes

    name, bits = _EXTENDED_BY_NUMBER[value.element_type]
    data = value.data
    if bits < 8:
        data = _unpack(data, math.prod(value.shape), bits, signed=name.startswith("int"))
    extended: Array = data.view(getattr(ml_dtypes, name)).reshape(value.shape)
    return extended


def describe(value: WireValue, buffers: list[Array]) -> Any:
    """The JSON form of a value; its bytes are appended to `buffers`."""
    if value is None:
        return None
    if isinstance(value, list):
        return {"sequence": [describe(item, buffers) for item in value]}
    if isinstance(value, dict):
        return {"map": [[key, describe(item, buffers)] for key, item in value.items()]}
    buffers.append(value.data)
    return {"tensor": [value.element_type, list(value.shape), len(buffers) - 1]}


def restore(description: Any, buffers: Sequence[Array]) -> WireValue:
    """Undo `describe`."""
    if description is None:
        return None
    if "sequence" in description:
        return [restore(item, buffers) for item in description["sequence"]]
    if "map" in description:
        return {key: restore(item, buffers) for key, item in description["map"]}
    element_type, shape, index = description["tensor"]
    return RawTensor(element_type, tuple(shape), buffers[index])


def frame_parts(header: Mapping[str, Any], buffers: Sequence[Array] = ()) -> list[memoryview]:
    """The byte ranges that make a frame, in order; tensors are not copied."""
    text = json.dumps({**header, "buffers": [buffer.nbytes for buffer in buffers]}).encode()
    return [
        memoryview(len(text).to_bytes(8, "little")),
        memoryview(text),
        *(buffer.data for buffer in buffers if buffer.nbytes),
    ]


def frame_reader() -> Generator[memoryview, None, tuple[dict[str, Any], list[Array]]]:
    """Yields the ranges to fill with the next bytes of the stream; returns the header and the buffers."""
    length = bytearray(8)
    yield memoryview(length)
    n_bytes = int.from_bytes(length, "little")
    if not 0 < n_bytes <= _MAX_HEADER_BYTES:
        raise ProtocolError(f"a header of {n_bytes} bytes")
    text = bytearray(n_bytes)
    yield memoryview(text)
    header = json.loads(text)
    buffers = []
    for size in header.pop("buffers"):
        buffers.append(aligned_buffer(size))
        if size:
            yield buffers[-1].data
    return header, buffers


def _flat_bytes(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _pack(elements: Array, bits: int) -> Array:
    per_byte = 8 // bits
    padded = np.zeros(-(-elements.size // per_byte) * per_byte, np.uint8)
    padded[: elements.size] = elements & ((1 << bits) - 1)
    packed = np.zeros(padded.size // per_byte, np.uint8)
    for position in range(per_byte):
        packed |= padded[position::per_byte] << (bits * position)
    return packed


def _unpack(packed: Array, n_elements: int, bits: int, *, signed: bool) -> Array:
    """One element per byte, as ml_dtypes stores them: sign bits extended, other upper bits zero."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    elements = ((packed[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1)[:n_elements]
    if signed:
        sign = 1 << (bits - 1)
        elements = (elements ^ sign) - np.uint8(sign)
    return np.ascontiguousarray(elements)


def _pack_strings(array: Array) -> Array:
    items = array.reshape(-1).tolist()
    for item in items:
        if not isinstance(item, (str, bytes)):
            raise TypeError(f"an array of objects holds a {type(item).__name__}, not only strings")
    texts = [item if isinstance(item, bytes) else item.encode() for item in items]
    lengths = np.array([len(text) for text in texts], "<i8")
    return np.frombuffer(lengths.tobytes() + b"".join(texts), np.uint8)


def _unpack_strings(data: Array, shape: tuple[int, ...]) -> Array:
    n_strings = math.prod(shape)
    lengths = data[: 8 * n_strings].view("<i8").tolist()
    text = data[8 * n_strings :].tobytes()
    strings = np.empty(n_strings, object)
    start = 0
    for index, length in enumerate(lengths):
        strings[index] = text[start : start + length].decode()
        start += length
    return strings.reshape(shape)
