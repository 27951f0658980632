"""Write a program: atomically, with unchanged weights copied by the operating system and never read."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import onnx
import onnx_ir
from opgraft.ir.errors import OutputError
from opgraft.ir.external import all_tensors
from opgraft.ir.program import Program
from opgraft.ir.wire import (
    GRAPH_INITIALIZER,
    INLINE_LIMIT_BYTES,
    MODEL_GRAPH,
    TENSOR_RAW_DATA,
    encode_tag,
    encode_varint,
)

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


def check_output(output: Path, source: Path | None, *, force: bool) -> None:
    """Refuse an output that is the input (through links too), exists without `force`, or has no folder.

    Raises OutputError.
    """
    where = str(output)
    if source is not None and source.exists() and output.exists() and os.path.samefile(source, output):
        raise OutputError("the output is the input", where=where, remedy="choose another name with -o")
    if source is not None and output.resolve() == source.resolve():
        raise OutputError("the output is the input", where=where, remedy="choose another name with -o")
    if output.is_dir():
        raise OutputError("the output is a folder", where=where, remedy="name a file in it")
    if not output.parent.is_dir():
        raise OutputError("the output's folder does not exist", where=where, remedy="create it first")
    if output.exists() and not force:
        raise OutputError("the output exists", where=where, remedy="--force overwrites it")
    data = data_path(output)
    if data.exists() and source is not None:
        for inner in _data_files(source):
            if inner.exists() and os.path.samefile(inner, data):
                raise OutputError(
                    f"{data.name} holds the input's weights",
                    where=where,
                    remedy="choose another name with -o",
                )
    if data.exists() and not output.exists() and not force:
        raise OutputError(f"{data.name} exists", where=where, remedy="--force overwrites it")


def _data_files(source: Path) -> Iterator[Path]:
    yield source
    yield data_path(source)
    with contextlib.suppress(OSError):
        yield from (p for p in source.parent.iterdir() if p.name.startswith(source.stem) and p.is_file())


def data_path(output: Path) -> Path:
    """Where the external data of `output` go."""
    return output.with_name(output.name + ".data")


def save(program: Program, output: str | Path, *, force: bool = False, external: bool | None = None) -> None:
    """Write `program` to `output`; nothing is left behind when that fails, and the input file is never touched.

    Weights stay inline unless the input kept them outside or they exceed protobuf's limit; then they go to
    `<output>.data`. `external` decides otherwise. Raises OutputError.
    """
    path = Path(output)
    check_output(path, program.path, force=force)
    if program.path is not None:
        _refuse_overwriting_sources(program, path)
    if external is None:
        external = _has_external_data(program) or _weight_bytes(program.model) > _MAX_INLINE_BYTES
    temporaries: list[Path] = []
    try:
        if external:
            _save_external(program, path, temporaries)
        else:
            _save_inline(program, path, temporaries)
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
        raise OutputError(f"cannot be written: {reason}", where=str(path)) from None
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def _refuse_overwriting_sources(program: Program, output: Path) -> None:
    targets = [p for p in (output, data_path(output)) if p.exists()]
    if not targets:
        return
    for source in {Path(t.path) for _, t in all_tensors(program.model) if isinstance(t, onnx_ir.ExternalTensor)}:
        for target in targets:
            if source.exists() and os.path.samefile(source, target):
                raise OutputError(
                    "the output would overwrite the input's weights",
                    where=str(target),
                    remedy="choose another name with -o",
                )


def _has_external_data(program: Program) -> bool:
    own = program.path.name if program.path is not None else None
    return any(isinstance(t, onnx_ir.ExternalTensor) and str(t.location) != own for _, t in all_tensors(program.model))


def _weight_bytes(model: onnx_ir.Model) -> int:
    return sum(tensor.nbytes for _, tensor in all_tensors(model))


def _open_temporary(path: Path, temporaries: list[Path]) -> BinaryIO:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporaries.append(Path(name))
    # mkstemp makes private files; an output should have the permissions of any other file the user makes.
    umask = os.umask(0)
    os.umask(umask)
    os.fchmod(handle, 0o666 & ~umask)
    return os.fdopen(handle, "wb")


def _detach_weights(
    graph: onnx_ir.Graph,
) -> tuple[list[_Weight], list[tuple[onnx_ir.Value, onnx_ir.TensorProtocol]]]:
    """The large initializers as weights to splice, replaced in the graph by nothing until `_reattach`."""
    weights: list[_Weight] = []
    detached: list[tuple[onnx_ir.Value, onnx_ir.TensorProtocol]] = []
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes < INLINE_LIMIT_BYTES or tensor.dtype == onnx_ir.DataType.STRING:
            continue
        weights.append(_Weight(_header(value, tensor), tensor, tensor.nbytes))  # type: ignore[arg-type]
        detached.append((value, tensor))
    return weights, detached


def _header(value: onnx_ir.Value, tensor: onnx_ir.TensorProtocol) -> bytes:
    proto = onnx.TensorProto(name=value.name or "", data_type=int(tensor.dtype), dims=[int(d) for d in tensor.shape])
    if tensor.doc_string:
        proto.doc_string = tensor.doc_string
    for key, text in sorted(tensor.metadata_props.items()):
        proto.metadata_props.add(key=key, value=text)
    return proto.SerializeToString()


def _message(program: Program, detached: list[tuple[onnx_ir.Value, onnx_ir.TensorProtocol]]) -> onnx.ModelProto:
    """The model as a message without the detached weights."""
    for value, _ in detached:
        value.const_value = None
    try:
        proto = onnx_ir.to_proto(program.model)
    finally:
        for value, tensor in detached:
            value.const_value = tensor
    _drop_initializer_values(proto.graph, program.graph)
    if program.leftover is not None:
        proto.MergeFrom(program.leftover)
    return proto


def _drop_initializer_values(graph: onnx.GraphProto, source: onnx_ir.Graph) -> None:
    """`value_info` repeats what an initializer says of itself; leave it out."""
    known = set(source.initializers)
    kept = [info for info in graph.value_info if info.name not in known]
    if len(kept) != len(graph.value_info):
        del graph.value_info[:]
        graph.value_info.extend(kept)


def _save_inline(program: Program, path: Path, temporaries: list[Path]) -> None:
    weights, detached = _detach_weights(program.graph)
    proto = _message(program, detached)
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
    with _open_temporary(path, temporaries) as file:
        file.write(rest)
        file.write(encode_tag(MODEL_GRAPH) + encode_varint(n_graph))
        file.write(graph)
        for prefix, weight in zip(prefixes, weights, strict=True):
            file.write(prefix)
            weight.tensor.tofile(file)
    os.replace(temporaries[-1], path)


def _save_external(program: Program, path: Path, temporaries: list[Path]) -> None:
    weights, detached = _detach_weights(program.graph)
    proto = _message(program, detached)
    location = data_path(path).name
    written: dict[tuple[str, int | None], int] = {}
    with _open_temporary(data_path(path), temporaries) as file:
        at = 0
        for weight in weights:
            key = _origin(weight)
            offset = written.get(key) if key is not None else None
            if offset is None:
                at = -(-at // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
                offset = at
                file.seek(offset)
                weight.tensor.tofile(file)
                at += weight.n_bytes
                if key is not None:
                    written[key] = offset
            tensor = proto.graph.initializer.add()
            tensor.ParseFromString(weight.header)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for name, text in (
                ("location", location),
                ("offset", str(offset)),
                ("length", str(weight.n_bytes)),
            ):
                tensor.external_data.add(key=name, value=text)
    with _open_temporary(path, temporaries) as file:
        file.write(proto.SerializeToString(deterministic=True))
    # The data go first: a crash between the two leaves the old model with data it can be checked against.
    if weights:
        os.replace(temporaries[0], data_path(path))
    os.replace(temporaries[1], path)


def _origin(weight: _Weight) -> tuple[str, int | None] | None:
    """Where shared (tied) weights come from, so that they are written once."""
    tensor = weight.tensor
    if isinstance(tensor, onnx_ir.ExternalTensor):
        return str(tensor.path), tensor.offset
    return None


def model_bytes(program: Program, *, inline_weights: bool = True) -> bytes:
    """The whole model as bytes, for programs known to be small. Raises OutputError beyond protobuf's limit."""
    if inline_weights and _weight_bytes(program.model) > _MAX_INLINE_BYTES:
        raise OutputError("the model is too large for one message", remedy="save it to a file")
    model = program.model
    external = [
        value
        for graph in program.scopes()
        for value in graph.initializers.values()
        if isinstance(value.const_value, onnx_ir.ExternalTensor)
    ]
    kept = [(value, value.const_value) for value in external]
    for value, tensor in kept:
        value.const_value = onnx_ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)  # type: ignore[union-attr]
    try:
        proto = onnx_ir.to_proto(model)
    finally:
        for value, tensor in kept:
            value.const_value = tensor
    if program.leftover is not None:
        proto.MergeFrom(program.leftover)
    return proto.SerializeToString(deterministic=True)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically. Raises OutputError."""
    temporaries: list[Path] = []
    try:
        with _open_temporary(path, temporaries) as file:
            file.write(text.encode())
        os.replace(temporaries[0], path)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", where=str(path)) from None
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
