"""Types of values before the IR sees them: element types, dims, and the kinds of type that the IR lacks."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir
from opgraft.ir.errors import InputError
from opgraft.ir.validate_functions import check_text

_ELEMENT_TYPES = frozenset(int(number) for number in onnx_ir.DataType)
_MAX_DEPTH = 16


def check_value_infos(infos: Iterable[onnx.ValueInfoProto], where: str, kept: dict[str, onnx.TypeProto] | None) -> bool:
    """Whether any has a doc string or metadata.

    Negative dims become unknown ones, as in the runtime. A type that the IR has no place for moves into `kept`;
    where that is None (subgraphs, functions) it is refused. Raises InputError for types that cannot be.
    """
    has_texts = False
    for info in infos:
        name, value_type = info.name, info.type
        check_text(name, where)
        kind = value_type.WhichOneof("value")
        if kind == "tensor_type":
            _check_tensor_type(value_type.tensor_type, name, where)
        elif kind is not None:
            _check_nested(info, kept, where)
        if value_type.denotation:
            check_text(value_type.denotation, where)
        if info.doc_string or info.metadata_props:
            has_texts = True
            for text in (info.doc_string, *(t for entry in info.metadata_props for t in (entry.key, entry.value))):
                check_text(text, where)
    return has_texts


def _check_tensor_type(tensor: onnx.TypeProto.Tensor | onnx.TypeProto.SparseTensor, name: str, where: str) -> None:
    if tensor.elem_type not in _ELEMENT_TYPES:
        raise InputError(
            f"value {name!r} has the unknown element type {tensor.elem_type}",
            where=where,
            remedy="the file is damaged, or newer than this version of onnx",
        )
    if not tensor.HasField("shape"):
        return
    for dim in tensor.shape.dim:
        if dim.dim_value < 0:
            dim.ClearField("dim_value")
        else:
            check_text(dim.dim_param, where)
        if dim.denotation:
            check_text(dim.denotation, where)


def _check_nested(info: onnx.ValueInfoProto, kept: dict[str, onnx.TypeProto] | None, where: str) -> None:
    inner = info.type
    for _ in range(_MAX_DEPTH):
        kind = inner.WhichOneof("value")
        if kind in ("tensor_type", "sparse_tensor_type"):
            _check_tensor_type(getattr(inner, kind), info.name, where)
            return
        if kind not in ("sequence_type", "optional_type") or not getattr(inner, kind).HasField("elem_type"):
            break
        inner = getattr(inner, kind).elem_type
    else:
        raise InputError(f"value {info.name!r} has a type nested deeper than {_MAX_DEPTH}", where=where)
    if kept is None:
        raise InputError(
            f"value {info.name!r} has a type that is not supported inside subgraphs and functions", where=where
        )
    kept[info.name] = onnx.TypeProto()
    kept[info.name].CopyFrom(info.type)
    info.ClearField("type")
