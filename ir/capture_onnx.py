"""Capture an ONNX model: read it without touching its weights, check it, and bring it into the IR."""

from __future__ import annotations

import logging
import mmap
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
from opgraft.ir.errors import InputError
from opgraft.ir.external import bind_self_references, check_external_data
from opgraft.ir.program import Program
from opgraft.ir.validate import check_program, check_proto
from opgraft.ir.wire import split

# The IR's own remarks on invalid graphs; we refuse those graphs with an error of ours.
logging.getLogger("onnx_ir").setLevel(logging.ERROR)

_LEFTOVER_FIELDS = ("training_info",)


def capture_onnx(source: str | Path | bytes | onnx.ModelProto) -> Program:
    """Read `source`: a path, the bytes of a model, or a `ModelProto`.

    Weights stay where they are: external data and inline weights of a file are memory-mapped when first used.
    Raises InputError when it is not a valid model, or its external data is not what it says.
    """
    if isinstance(source, (str, Path)):
        return _capture_file(Path(source))
    if isinstance(source, bytes):
        return _from_proto(_parse(source, "model bytes"), None)
    proto = onnx.ModelProto()
    proto.CopyFrom(source)
    return _from_proto(proto, None)


def _capture_file(path: Path) -> Program:
    where = str(path)
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise InputError("the file is empty", where=where)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
                skeleton = split(view, where)
                proto = _parse(bytes(skeleton), where)
                if isinstance(skeleton, memoryview) and skeleton is not view:
                    skeleton.release()
    except FileNotFoundError:
        raise InputError("no such file", where=where) from None
    except IsADirectoryError:
        raise InputError("this is a folder", where=where, remedy="name the .onnx file in it") from None
    except PermissionError:
        raise InputError("no permission to read the file", where=where) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=where) from None
    return _from_proto(proto, path)


def _parse(data: bytes, where: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:  # noqa: BLE001 - protobuf's DecodeError has a different class per implementation
        raise InputError(
            f"not a readable ONNX model: {error}", where=where, remedy="the file is truncated or not ONNX"
        ) from None
    return proto


def _from_proto(proto: onnx.ModelProto, path: Path | None) -> Program:
    where = str(path) if path else "model"
    check_proto(proto, where)
    _sparse_initializers_to_constants(proto.graph)
    leftover = _leftover(proto)
    try:
        model = onnx_ir.from_proto(proto)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - the IR reports invalid protos by many exception types
        raise InputError(f"invalid model: {_first_cause(error)}", where=where) from None
    base_dir = path.parent if path else None
    if path is not None:
        bind_self_references(model, path)
    program = Program(model, path=path, leftover=leftover, base_dir=base_dir)
    check_external_data(model, base_dir or Path())
    check_program(program, where)
    _normalise_old_ir_version(program)
    return program


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + " ..."


def _leftover(proto: onnx.ModelProto) -> Any:
    """Fields that the IR does not hold, kept to be written again."""
    if not any(len(getattr(proto, name)) for name in _LEFTOVER_FIELDS):
        return None
    rest = onnx.ModelProto()
    for name in _LEFTOVER_FIELDS:
        getattr(rest, name).extend(getattr(proto, name))
    return rest


def _sparse_initializers_to_constants(graph: onnx.GraphProto) -> None:
    """The IR has no sparse initializers; `Constant(sparse_value)` means the same at every opset from 11."""
    constants = []
    for sparse in graph.sparse_initializer:
        node = onnx.NodeProto(op_type="Constant", output=[sparse.values.name])
        attribute = node.attribute.add()
        attribute.name = "sparse_value"
        attribute.type = onnx.AttributeProto.SPARSE_TENSOR
        attribute.sparse_tensor.CopyFrom(sparse)
        constants.append(node)
    if constants:
        nodes = list(graph.node)
        del graph.sparse_initializer[:]
        del graph.node[:]
        graph.node.extend([*constants, *nodes])


def _normalise_old_ir_version(program: Program) -> None:
    """Before IR version 4 every initializer had to be listed as an input, and was a constant all the same."""
    model = program.model
    if model.ir_version >= 4:
        return
    graph = model.graph
    kept = [value for value in graph.inputs if not value.is_initializer()]
    if len(kept) != len(graph.inputs):
        graph.inputs[:] = kept
    model.ir_version = 4
