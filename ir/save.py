"""Write a program: atomically, with unchanged weights copied by the operating system and never read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import onnx
import onnx_ir
from opgraft.ir.bulk_file import MIN_BULK_BYTES, BulkFile
from opgraft.ir.destination import (
    check_output,
    check_sources,
    data_path,
    open_temporary,
    publish,
    write_error,
    write_text,
)
from opgraft.ir.errors import OutputError
from opgraft.ir.external import FileTensor, Replace, all_tensors, external_tensors
from opgraft.ir.program import Program
from opgraft.ir.shared_data import clone_data, common_data_file
from opgraft.ir.small_tensor import SmallTensor
from opgraft.ir.wire import (
    GRAPH_INITIALIZER,
    INLINE_LIMIT_BYTES,
    MODEL_GRAPH,
    TENSOR_RAW_DATA,
    encode_tag,
    encode_varint,
)
from opgraft.ir.write_model import model_message

__all__ = ["check_output", "check_sources", "data_path", "model_bytes", "publish", "save", "write_text"]

# Protobuf readers refuse messages of 2 GiB; stay below with room for what is not weights.
_MAX_INLINE_BYTES = 2_000_000_000
# What the runtime memory-maps wants page alignment.
_ALIGNMENT_BYTES = 4096


class _Tensor(Protocol):
    def tofile(self, file: BinaryIO) -> None: ...


@dataclass(frozen=True)
class _Weight:
    """An initializer whose bytes are written apart from the message."""

    header: bytes
    """`TensorProto` without its data."""
    tensor: _Tensor
    n_bytes: int


_Detached = tuple[onnx_ir.Value, onnx_ir.TensorProtocol]


def save(
    program: Program,
    output: str | Path,
    *,
    force: bool = False,
    external: bool | None = None,
) -> list[Path]:
    """Write `program` to `output`; nothing is left behind when that fails, and the input file is never touched.

    Weights stay inline unless the input kept them outside or they exceed protobuf's limit; then they go to
    `<output>.data`. `external` decides otherwise. Returns the files written. Raises OutputError.
    """
    path = Path(output)
    check_output(path, program.path, force=force)
    check_sources(program, path)
    if external is None:
        external = _writes_data_file(program)
    elif not external and _weight_bytes(program.model) > _MAX_INLINE_BYTES:
        raise OutputError("the weights are too large for one file", where=str(path), remedy="let them be external")
    temporaries: list[Path] = []
    try:
        if external:
            return _save_external(program, path, temporaries)
        return _save_inline(program, path, temporaries)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise write_error(error, path) from None
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def _writes_data_file(program: Program) -> bool:
    """Whether `save` keeps weights outside the model file unless told otherwise."""
    for tensor, _ in external_tensors(program.model):
        if not (isinstance(tensor, FileTensor) and tensor.is_inline):
            return True
    return _weight_bytes(program.model) > _MAX_INLINE_BYTES


def _weight_bytes(model: onnx_ir.Model) -> int:
    return sum(tensor.nbytes for _, tensor in all_tensors(model))


def _detach_weights(graph: onnx_ir.Graph) -> tuple[list[_Weight], list[_Detached]]:
    """The large initializers as weights to splice; `_message` takes them out of the graph while it writes."""
    weights: list[_Weight] = []
    detached: list[_Detached] = []
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or isinstance(tensor, SmallTensor):
            continue
        if tensor.nbytes < INLINE_LIMIT_BYTES or tensor.dtype == onnx_ir.DataType.STRING:
            continue
        weights.append(_Weight(_header(tensor, value.name or "").SerializeToString(), tensor, tensor.nbytes))  # type: ignore[arg-type]
        detached.append((value, tensor))
    return weights, detached


def _header(tensor: onnx_ir.TensorProtocol, name: str) -> onnx.TensorProto:
    """The message of a tensor without its data."""
    dims = [int(dim) for dim in tensor.shape.numpy()]
    proto = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=dims)
    if tensor.doc_string:
        proto.doc_string = tensor.doc_string
    for key, text in sorted(tensor.metadata_props.items()):
        proto.metadata_props.add(key=key, value=text)
    return proto


def _message(
    program: Program, detached: list[_Detached], substitutes: list[tuple[Replace, Any, Any]]
) -> onnx.ModelProto:
    """The model as a message, without the detached weights and with other tensors in some places."""
    for value, _ in detached:
        value.const_value = None
    for replace, _, substitute in substitutes:
        replace(substitute)
    try:
        proto = model_message(program.model)
    finally:
        for value, tensor in detached:
            value.const_value = tensor
        for replace, tensor, _ in substitutes:
            replace(tensor)
    _restore_leftover(proto, program)
    return proto


def _restore_leftover(proto: onnx.ModelProto, program: Program) -> None:
    """Write again what the IR could not hold."""
    leftover = program.leftover
    if leftover is None:
        return
    proto.training_info.extend(leftover.training)
    if leftover.types:
        for infos in (proto.graph.input, proto.graph.output, proto.graph.value_info):
            for info in infos:
                if info.name in leftover.types and not info.HasField("type"):
                    info.type.CopyFrom(leftover.types[info.name])


def _stray_tensors(program: Program, detached: list[_Detached]) -> list[tuple[Replace, onnx_ir.ExternalTensor]]:
    """Tensors in files that are not large initializers of the main graph: in subgraphs, attributes, functions."""
    taken = {id(tensor) for _, tensor in detached}
    return [(replace, tensor) for tensor, replace in external_tensors(program.model) if id(tensor) not in taken]


def _in_memory(tensor: onnx_ir.ExternalTensor) -> onnx_ir.TensorProtocol:
    return onnx_ir.Tensor(
        tensor.numpy(),
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _save_inline(program: Program, path: Path, temporaries: list[Path]) -> list[Path]:
    weights, detached = _detach_weights(program.graph)
    strays = [(replace, tensor, _in_memory(tensor)) for replace, tensor in _stray_tensors(program, detached)]
    proto = _message(program, detached, strays)
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    rest = proto.SerializeToString(deterministic=True)
    prefixes = []
    n_graph = len(graph)
    for weight in weights:
        data_tag = encode_tag(TENSOR_RAW_DATA) + encode_varint(weight.n_bytes)
        n_tensor = len(weight.header) + len(data_tag) + weight.n_bytes
        prefix = encode_tag(GRAPH_INITIALIZER) + encode_varint(n_tensor) + weight.header + data_tag
        prefixes.append(prefix)
        n_graph += len(prefix) + weight.n_bytes
    with _open_output(path, temporaries, n_graph) as file:
        file.write(rest)
        file.write(encode_tag(MODEL_GRAPH) + encode_varint(n_graph))
        file.write(graph)
        for prefix, weight in zip(prefixes, weights, strict=True):
            file.write(prefix)
            _write_weight(file, weight.tensor, weight.n_bytes)
    os.replace(temporaries[-1], path)
    return [path]


def _open_output(path: Path, temporaries: list[Path], n_bytes: int) -> BinaryIO | BulkFile:
    file = open_temporary(path, temporaries)
    return BulkFile(file) if n_bytes >= MIN_BULK_BYTES else file


def _write_weight(file: BinaryIO | BulkFile, tensor: _Tensor, n_bytes: int) -> None:
    """Write the bytes of a tensor, which must be as many as the header before them says."""
    start = file.tell()
    if isinstance(file, BulkFile) and isinstance(tensor, FileTensor):
        tensor.check_unchanged()
        file.copy_from(tensor.path, tensor.offset or 0, n_bytes)
    else:
        tensor.tofile(file)  # type: ignore[arg-type]
    if file.tell() - start != n_bytes:
        raise OutputError(f"a tensor of {n_bytes} bytes gave {file.tell() - start}", remedy="please report this")


class _DataFile:
    """The data file of a model while it is written; tensors that share their bytes are written once."""

    def __init__(self, file: BinaryIO | BulkFile, location: str) -> None:
        self.file = file
        self.location = location
        self._end = 0
        self._written: dict[tuple[Any, ...], int] = {}

    def add(self, tensor: _Tensor, n_bytes: int) -> int:
        """The offset at which the tensor lies."""
        key: tuple[Any, ...] = (id(tensor),)
        if isinstance(tensor, onnx_ir.ExternalTensor):
            key = (tensor.path, tensor.offset or 0, n_bytes)
        if key not in self._written:
            offset = -(-self._end // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
            self.file.seek(offset)
            _write_weight(self.file, tensor, n_bytes)
            self._written[key] = offset
            self._end = offset + n_bytes
        return self._written[key]


def _save_external(program: Program, path: Path, temporaries: list[Path]) -> list[Path]:
    weights, detached = _detach_weights(program.graph)
    shared = _share_data(program, path, temporaries, [weight.tensor for weight in weights], detached)
    if shared is not None:
        return _save_message(program, path, temporaries, weights, detached, shared, [])
    substitutes: list[tuple[Replace, Any, Any]] = []
    with _open_output(data_path(path), temporaries, sum(weight.n_bytes for weight in weights)) as file:
        data = _DataFile(file, data_path(path).name)
        offsets = [data.add(weight.tensor, weight.n_bytes) for weight in weights]
        for replace, tensor in _stray_tensors(program, detached):
            if tensor.nbytes < INLINE_LIMIT_BYTES:
                substitutes.append((replace, tensor, _in_memory(tensor)))
            else:
                offset = data.add(tensor, tensor.nbytes)
                substitutes.append((replace, tensor, _moved(tensor, data.location, offset)))
        if not file.tell():
            temporaries.pop().unlink()
    return _save_message(program, path, temporaries, weights, detached, offsets, substitutes)


def _share_data(
    program: Program,
    path: Path,
    temporaries: list[Path],
    tensors: list[Any],
    detached: list[_Detached],
) -> list[int] | None:
    """Offsets in the input's data file when the output can have that as it is."""
    source = common_data_file(tensors)
    if source is None or _stray_tensors(program, detached):
        return None
    open_temporary(data_path(path), temporaries).close()
    if clone_data(source, temporaries[-1], tensors):
        return [tensor.offset or 0 for tensor in tensors]
    temporaries.pop().unlink()
    return None


def _save_message(
    program: Program,
    path: Path,
    temporaries: list[Path],
    weights: list[_Weight],
    detached: list[_Detached],
    offsets: list[int],
    substitutes: list[tuple[Replace, Any, Any]],
) -> list[Path]:
    """Write the model beside its data file, which is the first temporary if there is one, and publish both."""
    data = temporaries[0] if temporaries else None
    location = data_path(path).name
    proto = _message(program, detached, substitutes)
    for weight, offset in zip(weights, offsets, strict=True):
        header = proto.graph.initializer.add()
        header.ParseFromString(weight.header)
        header.data_location = onnx.TensorProto.EXTERNAL
        entries = {"location": location, "offset": str(offset), "length": str(weight.n_bytes)}
        for key, text in entries.items():
            header.external_data.add(key=key, value=text)
    with open_temporary(path, temporaries) as file:
        file.write(proto.SerializeToString(deterministic=True))
    publish(temporaries[-1], data, path)
    return [path, data_path(path)] if data is not None else [path]


def _moved(tensor: onnx_ir.ExternalTensor, location: str, offset: int) -> onnx_ir.ExternalTensor:
    return onnx_ir.ExternalTensor(
        location,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=tensor.shape,
        name=tensor.name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def model_bytes(program: Program) -> bytes:
    """The whole model as bytes, for programs known to be small. Raises OutputError beyond protobuf's limit."""
    if _weight_bytes(program.model) > _MAX_INLINE_BYTES:
        raise OutputError("the model is too large for one message", remedy="save it to a file")
    strays = [(replace, tensor, _in_memory(tensor)) for replace, tensor in _stray_tensors(program, [])]
    data: bytes = _message(program, [], strays).SerializeToString(deterministic=True)
    return data
