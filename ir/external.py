"""External data: tensors whose bytes lie in a file beside the model, checked before anything reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir
from opgraft.ir.errors import InputError
from opgraft.ir.wire import SELF_LOCATION


def all_tensors(model: onnx_ir.Model) -> Iterator[tuple[str, onnx_ir.TensorProtocol]]:
    """Every tensor a model holds with the name of its place: initializers and tensor attributes, in all scopes."""
    graphs = [model.graph, *model.graph.subgraphs()]
    for function in model.functions.values():
        graphs += [function.graph, *function.subgraphs()]
    for graph in graphs:
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                yield name, value.const_value
        for node in graph:
            if not node.attributes:
                continue
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                if attribute.type == onnx_ir.AttributeType.TENSOR:
                    yield node.name or node.op_type, attribute.as_tensor()
                elif attribute.type == onnx_ir.AttributeType.TENSORS:
                    for tensor in attribute.as_tensors():
                        yield node.name or node.op_type, tensor


def bind_self_references(model: onnx_ir.Model, path: Path) -> None:
    """Point the references that `wire.split` made at the model file itself."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, onnx_ir.ExternalTensor) and tensor.location == SELF_LOCATION:
            value.const_value = onnx_ir.ExternalTensor(
                path.name,
                tensor.offset,
                tensor.length,
                tensor.dtype,
                shape=tensor.shape,  # type: ignore[arg-type]
                name=tensor.name or "",
                doc_string=tensor.doc_string,
                metadata_props=tensor.metadata_props,
                base_dir=path.parent,
            )


def check_external_data(model: onnx_ir.Model, base_dir: Path) -> None:
    """Refuse external data that is missing, short, negative, overlapping or outside the model's folder.

    Raises InputError naming the tensor, the file and the bytes at fault.
    """
    root = base_dir.resolve()
    sizes: dict[str, int] = {}
    ranges: dict[str, dict[tuple[int, int], str]] = {}
    for name, tensor in all_tensors(model):
        if not isinstance(tensor, onnx_ir.ExternalTensor):
            continue
        location = str(tensor.location)
        if location not in sizes:
            sizes[location] = _checked_size(root, base_dir, location, name)
        begin, length = _checked_range(tensor, sizes[location], location, name)
        ranges.setdefault(location, {}).setdefault((begin, length), name)
        if Path(tensor.base_dir) != base_dir:
            tensor.base_dir = base_dir
    for location, spans in ranges.items():
        _check_overlaps(spans, location)


def _checked_size(root: Path, base_dir: Path, location: str, name: str) -> int:
    where = f"tensor {name!r}"
    if not location or "\0" in location:
        raise InputError("external data without a file name", where=where, remedy="save the model again")
    path = base_dir / location
    real = path.resolve()
    if Path(location).is_absolute() or not real.is_relative_to(root):
        raise InputError(
            f"external data {location!r} is outside the model's folder",
            where=where,
            remedy="put the file beside the model",
        )
    if not real.is_file():
        raise InputError(f"external data file {location!r} is missing", where=where, remedy="put it beside the model")
    return real.stat().st_size


def _checked_range(tensor: onnx_ir.ExternalTensor, file_bytes: int, location: str, name: str) -> tuple[int, int]:
    where = f"tensor {name!r} in {location!r}"
    offset = tensor.offset or 0
    if any(not isinstance(d, int) or d < 0 for d in tensor.shape):
        raise InputError(f"shape {list(tensor.shape)} is not a tensor's shape", where=where)
    needed = tensor.nbytes
    length = needed if tensor.length is None else tensor.length
    if offset < 0 or length < 0:
        raise InputError(f"negative offset or length ({offset}, {length})", where=where)
    if length != needed and not (length == 0 and needed == 0):
        raise InputError(
            f"{length} bytes are declared, its type and shape take {needed}",
            where=where,
            remedy="the model and its data do not belong together",
        )
    if offset + length > file_bytes:
        raise InputError(
            f"bytes {offset} to {offset + length} lie beyond the file's {file_bytes}",
            where=where,
            remedy="the data file is truncated or belongs to another model",
        )
    return offset, length


def _check_overlaps(spans: dict[tuple[int, int], str], location: str) -> None:
    """Two tensors may share the very same bytes (tied weights), but not half of them."""
    last_end, last_name = 0, ""
    for (begin, length), name in sorted(spans.items()):
        if length and begin < last_end:
            raise InputError(
                f"tensors {last_name!r} and {name!r} overlap at byte {begin}",
                where=repr(location),
                remedy="the offsets are damaged; save the model again",
            )
        if begin + length > last_end:
            last_end, last_name = begin + length, name
