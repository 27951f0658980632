"""The protobuf wire format of a model file, read only as deep as needed to leave weights on disk.

A model with inline weights is mostly `TensorProto.raw_data`. `split` walks the top two levels of the file
(`ModelProto.graph`, `GraphProto.initializer`), and returns the same model with each large `raw_data` replaced by a
reference (offset, length) into the file; `append_initializer_header` does the reverse while writing. So no weight
is ever parsed, copied into a message or bound by protobuf's 2 GiB limit.

Source: protobuf encoding specification; field numbers from onnx.proto (ModelProto.graph = 7,
GraphProto.initializer = 5, TensorProto.raw_data = 9, .external_data = 13, .data_location = 14).
"""

from __future__ import annotations

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

# Location written into the skeleton for tensors that live in the model file itself; "\0" cannot be in a path.
SELF_LOCATION = "\0self"


@dataclass(frozen=True)
class _Field:
    number: int
    wire_type: int
    start: int
    """First byte of the tag."""
    value: int
    """The varint, or for LEN the first byte of the payload."""
    end: int


class WireError(ValueError):
    """The bytes are not a well-formed protobuf message."""


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


def _fields(data: memoryview, start: int, end: int) -> list[_Field]:
    """All fields of the message in data[start:end], payloads unread."""
    fields = []
    at = start
    while at < end:
        begin = at
        tag = data[at]
        at += 1
        if tag >= 0x80:
            tag, at = _varint(data, begin, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _LEN:
            length, payload = _varint(data, at, end)
            at = payload + length
            if at > end:
                raise WireError(f"field {number} at byte {begin} is {length} bytes long, {end - payload} are left")
            fields.append(_Field(number, wire_type, begin, payload, at))
            continue
        value = 0
        if wire_type == _VARINT:
            value, at = _varint(data, at, end)
        elif wire_type in (_FIXED64, _FIXED32):
            at += 8 if wire_type == _FIXED64 else 4
            if at > end:
                raise WireError(f"field {number} at byte {begin} is cut short")
        else:
            raise WireError(f"wire type {wire_type} at byte {begin}")
        if number == 0:
            raise WireError(f"field number 0 at byte {begin}")
        fields.append(_Field(number, wire_type, begin, value, at))
    return fields


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


def _skeleton_tensor(data: memoryview, start: int, end: int) -> bytes | None:
    """The tensor in data[start:end] with its raw data referenced; None when it is better left as it is."""
    if end - start < INLINE_LIMIT_BYTES:
        return None
    fields = _fields(data, start, end)
    raw = [f for f in fields if f.number == TENSOR_RAW_DATA and f.wire_type == _LEN]
    # A tensor with two raw_data fields is legal protobuf (the last one wins) but no writer makes one.
    if len(raw) != 1 or raw[0].end - raw[0].value < INLINE_LIMIT_BYTES:
        return None
    if any(f.number in (TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION) for f in fields):
        return None
    reference = external_reference(SELF_LOCATION, raw[0].value, raw[0].end - raw[0].value)
    return bytes(data[start : raw[0].start]) + bytes(data[raw[0].end : end]) + reference


def split(data: memoryview, where: str) -> bytes | memoryview:
    """The model without its large inline weights; `data` itself when it has none.

    Raises InputError when the outer structure is truncated or is no protobuf message.
    """
    try:
        top = _fields(data, 0, len(data))
        graphs = [f for f in top if f.number == MODEL_GRAPH and f.wire_type == _LEN]
        if len(graphs) != 1:
            return data
        graph = graphs[0]
        parts: list[bytes | memoryview] = []
        copied = graph.value
        for field in _fields(data, graph.value, graph.end):
            if field.number != GRAPH_INITIALIZER or field.wire_type != _LEN:
                continue
            tensor = _skeleton_tensor(data, field.value, field.end)
            if tensor is not None:
                parts += [data[copied : field.start], encode_bytes(GRAPH_INITIALIZER, tensor)]
                copied = field.end
    except WireError as error:
        raise InputError(
            f"not a readable ONNX model: {error}", where=where, remedy="the file is truncated or not ONNX"
        ) from None
    if not parts:
        return data
    body = b"".join([*parts, data[copied : graph.end]])
    return b"".join([data[: graph.start], encode_bytes(MODEL_GRAPH, body), data[graph.end :]])
