"""Checks on `TensorProto` before the IR sees it: shape, element type, amount of data, external entries."""

from __future__ import annotations

import math
from collections.abc import Iterable

import onnx_ir
from onnx import TensorProto
from opgraft.ir.errors import InputError

# More elements than any machine holds; products of dims beyond this are damage or attack.
MAX_ELEMENTS = 1 << 48
_EXTERNAL_KEYS = frozenset(("location", "offset", "length"))
_MAX_FILE_BYTES = (1 << 63) - 1

_TYPED_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_INT32_TYPES = (
    *("BFLOAT16", "BOOL", "FLOAT16", "INT16", "INT32", "INT2", "INT4", "INT8", "UINT16", "UINT2", "UINT4", "UINT8"),
    *("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"),
    *("FLOAT6E2M3", "FLOAT6E3M2", "FLOAT4E2M1"),
)
# Element type -> the typed field of TensorProto that may hold it (onnx.proto, comments of TensorProto).
_FIELD_OF_TYPE: dict[int, str] = {
    **dict.fromkeys((int(onnx_ir.DataType[name]) for name in _INT32_TYPES), "int32_data"),
    TensorProto.FLOAT: "float_data",
    TensorProto.COMPLEX64: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.COMPLEX128: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
    TensorProto.STRING: "string_data",
}
# Entries of the typed field per element; types below a byte are packed two or four to an entry (6 bits are not).
_ENTRIES: dict[int, float] = {
    **dict.fromkeys((TensorProto.COMPLEX64, TensorProto.COMPLEX128), 2),
    **dict.fromkeys((TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1), 1 / 2),
    **dict.fromkeys((int(onnx_ir.DataType.INT2), int(onnx_ir.DataType.UINT2)), 1 / 4),
}
# Bits of one element.
BITS: dict[int, int] = {
    number: onnx_ir.DataType(number).bitwidth for number in _FIELD_OF_TYPE if number != TensorProto.STRING
}


def check_tensor(tensor: TensorProto, where: str) -> bool:
    """Whether its data are external. Raises InputError when its data cannot be what its type and shape say.

    An external tensor without elements becomes an inline one: there is nothing to read.
    """
    n_elements = check_dims(tensor.dims, f"tensor {tensor.name!r}", where)
    element_type = tensor.data_type
    field = _FIELD_OF_TYPE.get(element_type)
    if field is None:
        raise _refusal(tensor, where, f"has the unknown element type {element_type}")
    if tensor.data_location == TensorProto.EXTERNAL:
        _check_external(tensor, n_elements, where)
        if n_elements:
            return True
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")
    if tensor.HasField("raw_data"):
        _check_raw(tensor, n_elements, where)
        return False
    n_entries = len(getattr(tensor, field))
    wanted = math.ceil(n_elements * _ENTRIES.get(element_type, 1))
    if n_entries != wanted:
        raise _refusal(tensor, where, f"holds {n_entries} entries of {field}, its shape takes {wanted}")
    if _n_value_fields(tensor) > (n_entries > 0):
        raise _refusal(tensor, where, "holds data of two types")
    return False


def check_dims(dims: Iterable[int], subject: str, where: str) -> int:
    """The number of elements of a shape. Raises InputError when a dim is negative or the product is absurd."""
    sizes = list(dims)
    if sizes and (min(sizes) < 0 or max(sizes) > MAX_ELEMENTS or math.prod(sizes) > MAX_ELEMENTS):
        more = ", ..." if len(sizes) > 8 else ""
        raise InputError(
            f"{subject} has the absurd shape [{', '.join(map(str, sizes[:8]))}{more}]",
            where=where,
            remedy="the file is damaged or hostile",
        )
    return math.prod(sizes)


def _refusal(tensor: TensorProto, where: str, what: str) -> InputError:
    return InputError(f"tensor {tensor.name!r} {what}", where=where, remedy="the model is invalid")


def _n_value_fields(tensor: TensorProto) -> int:
    return sum(bool(getattr(tensor, name)) for name in (*_TYPED_FIELDS, "raw_data"))


def _has_typed_data(tensor: TensorProto) -> bool:
    # One expression without a loop: this is asked of every weight.
    return bool(
        tensor.float_data
        or tensor.int32_data
        or tensor.int64_data
        or tensor.double_data
        or tensor.uint64_data
        or tensor.string_data
    )


def _check_raw(tensor: TensorProto, n_elements: int, where: str) -> None:
    bits = BITS.get(tensor.data_type)
    if bits is None:
        raise _refusal(tensor, where, "holds strings as raw data")
    wanted = -(-n_elements * bits // 8)
    n_bytes = len(tensor.raw_data)
    if n_bytes != wanted:
        raise _refusal(tensor, where, f"holds {n_bytes} bytes, its type and shape take {wanted}")
    if _has_typed_data(tensor):
        raise _refusal(tensor, where, "holds data twice, raw and typed")


def _check_external(tensor: TensorProto, n_elements: int, where: str) -> None:
    bits = BITS.get(tensor.data_type)
    if bits is None:
        raise _refusal(tensor, where, "is a string tensor with external data")
    if _n_value_fields(tensor):
        raise _refusal(tensor, where, "holds data although they are said to be external")
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in entries:
            raise _refusal(tensor, where, f"says its external {entry.key} twice")
        if entry.key in _EXTERNAL_KEYS:
            entries[entry.key] = entry.value
    if not isinstance(entries.get("location", ""), str):
        raise _refusal(tensor, where, "has an external location that is no UTF-8")
    for key in ("offset", "length"):
        text = entries.get(key, "0")
        # 19 digits are enough for 2**63 - 1, and int() of an endless string takes long.
        if not (isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) <= 19):
            raise _refusal(tensor, where, f"has the external {key} {text!r}, which is not a number of bytes")
        if int(text) > _MAX_FILE_BYTES:
            raise _refusal(tensor, where, f"has the absurd external {key} {text}")
    wanted = -(-n_elements * bits // 8)
    if "length" in entries and int(entries["length"]) != wanted:
        # What `wire.split` took out of the model's own file.
        is_inline = entries.get("location", "").startswith("\0")
        holds = "holds {} bytes" if is_inline else "declares {} external bytes"
        raise InputError(
            f"tensor {tensor.name!r} {holds.format(entries['length'])}, its type and shape take {wanted}",
            where=where,
            remedy="the file is damaged" if is_inline else "the model and its data do not belong together",
        )
    if len(entries) != len(tensor.external_data):
        # Checksums and other people's keys say nothing about the bytes that we write.
        del tensor.external_data[:]
        for key, text in entries.items():
            tensor.external_data.add(key=key, value=text)
