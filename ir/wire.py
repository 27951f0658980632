"""The protobuf wire format of a model file, read only as deep as needed to leave weights on disk.

A model with inline weights is mostly `TensorProto.raw_data`. `split` walks the top two levels of the file
(`ModelProto.graph`, `GraphProto.initializer`), and returns the same model with each large `raw_data` replaced by a
reference (offset, length) into the file; `save` does the reverse. So no weight is ever parsed, copied into a message
or bound by protobuf's 2 GiB limit.

Source: protobuf encoding specification; field numbers from onnx.proto (ModelProto.graph = 7,
GraphProto.initializer = 5, TensorProto.raw_data = 9, .external_data = 13, .data_location = 14).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from opgraft.ir.errors import InputError

MODEL_GRAPH = 7
GRAPH_INITIALIZER = 5
TENSOR_RAW_DATA = 9
TENSOR_EXTERNAL_DATA = 13
TENSOR_DATA_LOCATION = 14
_VARINT, _FIXED64, _LEN, _FIXED32 = 0, 1, 2, 5

# Below this, a reference costs more than the bytes; a page is also what a memory map reads at least.
INLINE_LIMIT_BYTES = 4096
# Protobuf's parsers refuse more. What `split` leaves of a model is its structure: real ones take a few megabytes.
_MAX_MESSAGE_BYTES = (1 << 31) - 1
# Nodes, tensors and value infos of one graph. A message takes hundreds of times the two bytes of an empty field, so
# that a small file could otherwise eat the memory; the largest real graphs have some 100,000 nodes.
_MAX_FIELDS = 4_000_000
_WHAT_TO_DO = "the file is truncated or not ONNX"


@dataclass(frozen=True)
class Skeleton:
    """A model without its large inline weights."""

    message: bytes | memoryview
    """The bytes of a ModelProto; the file itself when nothing was taken out."""
    location: str
    """External location that stands for the file itself. No path holds "\\0", and no file can know the rest."""


class WireError(ValueError):
    """The bytes are not a well-formed protobuf message."""


# Field number, wire type, first byte of the tag, first byte of a LEN payload, end.
_Field = tuple[int, int, int, int, int]


def encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_tag(number: int, wire_type: int = _LEN) -> bytes:
    return encode_varint(number << 3 | wire_type)


def encode_bytes(number: int, payload: bytes) -> bytes:
    return encode_tag(number) + encode_varint(len(payload)) + payload


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    result = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
        shift += 7
        if shift > 63:
            break
    raise WireError(f"bad varint at byte {at}")


def _fields(data: memoryview, start: int, end: int) -> Iterator[_Field]:
    """The fields of the message in data[start:end], payloads unread."""
    at = start
    while at < end:
        begin = at
        tag = data[at]
        at += 1
        if tag >= 0x80:
            tag, at = _varint(data, begin, end)
        number, wire_type = tag >> 3, tag & 7
        payload = at
        if wire_type == _LEN:
            length, payload = _varint(data, at, end)
            at = payload + length
        elif wire_type == _VARINT:
            _, at = _varint(data, at, end)
        elif wire_type == _FIXED64:
            at += 8
        elif wire_type == _FIXED32:
            at += 4
        else:
            raise WireError(f"wire type {wire_type} at byte {begin}")
        if at > end:
            raise WireError(f"field {number} ends at byte {at}, what holds it at byte {end}")
        if number == 0:
            raise WireError(f"field number 0 at byte {begin}")
        yield number, wire_type, begin, payload, at


def _external_entry(key: str, value: str) -> bytes:
    return encode_bytes(TENSOR_EXTERNAL_DATA, encode_bytes(1, key.encode()) + encode_bytes(2, value.encode()))


def external_reference(location: str, offset: int, length: int) -> bytes:
    """The `TensorProto` fields that say where the bytes are."""
    return (
        _external_entry("location", location)
        + _external_entry("offset", str(offset))
        + _external_entry("length", str(length))
        + encode_tag(TENSOR_DATA_LOCATION, _VARINT)
        + b"\x01"
    )


def _skeleton_tensor(data: memoryview, start: int, end: int, location: str) -> bytes | None:
    """The tensor in data[start:end] with its raw data referenced; None when it is better left as it is."""
    if end - start < INLINE_LIMIT_BYTES:
        return None
    raw: _Field | None = None
    for n_fields, field in enumerate(_fields(data, start, end)):
        number, wire_type = field[0], field[1]
        if number in (TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION) or n_fields > _MAX_FIELDS:
            return None
        if number == TENSOR_RAW_DATA and wire_type == _LEN:
            if raw is not None:
                # Legal protobuf (the last one wins), but no writer makes it.
                return None
            raw = field
    if raw is None or raw[4] - raw[3] < INLINE_LIMIT_BYTES:
        return None
    _, _, begin, payload, stop = raw
    return bytes(data[start:begin]) + bytes(data[stop:end]) + external_reference(location, payload, stop - payload)


def _skeleton_graph(data: memoryview, start: int, end: int, location: str) -> list[bytes]:
    """Pieces of the graph in data[start:end]; an empty list when it stays as it is."""
    # Copies, not views: a view that an exception keeps alive would keep the file from being unmapped.
    parts: list[bytes] = []
    copied = start
    for n_fields, (number, wire_type, begin, payload, stop) in enumerate(_fields(data, start, end)):
        if n_fields > _MAX_FIELDS:
            raise WireError(f"the graph has more than {_MAX_FIELDS} entries")
        if number == GRAPH_INITIALIZER and wire_type == _LEN:
            tensor = _skeleton_tensor(data, payload, stop, location)
            if tensor is not None:
                parts += [bytes(data[copied:begin]), encode_bytes(GRAPH_INITIALIZER, tensor)]
                copied = stop
    return [*parts, bytes(data[copied:end])] if parts else []


def split(data: memoryview, where: str) -> Skeleton:
    """The model without its large inline weights.

    Raises InputError when the outer structure is truncated or is no protobuf message, and when more than protobuf's
    2 GiB remain.
    """
    location = f"\0{os.urandom(16).hex()}"
    parts: list[bytes] = []
    copied = 0
    try:
        for n_fields, (number, wire_type, begin, payload, stop) in enumerate(_fields(data, 0, len(data))):
            if n_fields > _MAX_FIELDS:
                raise WireError(f"the model has more than {_MAX_FIELDS} entries")
            # A graph in several pieces is one graph to protobuf, so each piece is treated alike.
            if number == MODEL_GRAPH and wire_type == _LEN:
                graph = _skeleton_graph(data, payload, stop, location)
                if graph:
                    parts += [bytes(data[copied:begin]), encode_bytes(MODEL_GRAPH, b"".join(graph))]
                    copied = stop
    except WireError as error:
        raise InputError(f"not a readable ONNX model: {error}", where=where, remedy=_WHAT_TO_DO) from None
    message = b"".join([*parts, data[copied:]]) if parts else data
    if len(message) > _MAX_MESSAGE_BYTES:
        raise InputError(
            f"{len(message)} bytes besides the raw data of initializers, protobuf reads {_MAX_MESSAGE_BYTES}",
            where=where,
            remedy="keep large tensors in initializers, as raw data or external data",
        )
    return Skeleton(message, location)
