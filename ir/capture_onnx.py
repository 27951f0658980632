"""Capture an ONNX model: read it without touching its weights, check it, and bring it into the IR."""

from __future__ import annotations

import contextlib
import gc
import logging
import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir
from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-untyped]
from onnx import defs
from opgraft.ir.errors import InputError
from opgraft.ir.external import all_tensors, bind_files
from opgraft.ir.normalize_export import strip_debug_info
from opgraft.ir.program import Program
from opgraft.ir.read_model import read_model
from opgraft.ir.shadowing import rename_shadowing_values
from opgraft.ir.validate import Findings, check_proto
from opgraft.ir.wire import split

# The IR's own remarks on invalid graphs; we refuse those graphs with an error of ours.
logging.getLogger("onnx_ir").setLevel(logging.ERROR)

# First bytes of files that are often mistaken for ONNX models, and what to do about them.
_OTHER_FORMATS = (
    (0, b"version https://git-lfs.github.com", "a Git LFS pointer", "run `git lfs pull` to get the model"),
    (4, b"ORTM", "an ONNX Runtime .ort file", "give the .onnx file that it was made from"),
    (4, b"TFL3", "a TensorFlow Lite model", "convert it to ONNX first"),
    (0, b"PK\x03\x04", "a zip archive", "extract it; a torch checkpoint must be exported first"),
    (0, b"\x89HDF", "an HDF5 file", "convert it to ONNX first"),
    (0, b"\x1f\x8b", "a gzip file", "decompress it"),
    (0, b"\x80\x02", "a pickle", "a torch module must be exported first"),
    (0, b"<", "a text file", "was it downloaded as a web page?"),
)


@dataclass
class Leftover:
    """What a file holds that the IR has no place for; `save` writes it again."""

    training: list[onnx.TrainingInfoProto] = field(default_factory=list)
    types: dict[str, onnx.TypeProto] = field(default_factory=dict)
    """Inputs, outputs and values of the main graph with maps or opaque types."""


def capture_onnx(source: str | Path | bytes | onnx.ModelProto, *, keep_debug_info: bool = False) -> Program:
    """Read `source`: a path, the bytes of a model, or a `ModelProto`.

    Weights stay where they are: external data and inline weights of a file are memory-mapped when first used.
    Stack traces and absolute paths in doc strings and metadata are dropped unless `keep_debug_info`.
    Raises InputError when it is not a valid model, or its external data is not what it says.
    """
    with _paused_collection():
        if isinstance(source, (str, Path)):
            return _capture_file(Path(source), keep_debug_info)
        if isinstance(source, bytes):
            proto = _parse(source, "model bytes")
        else:
            proto = onnx.ModelProto()
            proto.CopyFrom(source)
        return _from_proto(proto, None, "", keep_debug_info)


@contextlib.contextmanager
def _paused_collection() -> Iterator[None]:
    """Building a graph makes millions of objects and no garbage; the collector would walk them again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _capture_file(path: Path, keep_debug_info: bool) -> Program:
    where = str(path)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise InputError("no such file", where=where) from None
    except PermissionError:
        raise InputError("no permission to read the file", where=where) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {getattr(error, 'strerror', None) or error}", where=where) from None
    try:
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            raise InputError("this is a folder", where=where, remedy="name the .onnx file in it")
        if not stat.S_ISREG(found.st_mode):
            raise InputError("this is no regular file", where=where, remedy="name an .onnx file")
        if found.st_size == 0:
            raise InputError("the file is empty", where=where, remedy="export or download it again")
        proto, location = _read_skeleton(handle, where)
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot be read: {error.strerror or error}", where=where) from None
    finally:
        os.close(handle)
    return _from_proto(proto, path, location, keep_debug_info)


def _read_skeleton(handle: int, where: str) -> tuple[onnx.ModelProto, str]:
    """The message without large weights, and the location that stands for the file itself."""
    with mmap.mmap(handle, 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
        head = bytes(view[:64])
        for at, magic, name, remedy in _OTHER_FORMATS:
            if head.startswith(magic, at):
                raise InputError(f"this is {name}, not an ONNX model", where=where, remedy=remedy)
        skeleton = split(view, where)
        return _parse(bytes(skeleton.message), where), skeleton.location


def _parse(data: bytes, where: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:  # noqa: BLE001 - protobuf's DecodeError has a different class per implementation
        raise InputError(
            f"not a readable ONNX model: {error}",
            where=where,
            remedy="the file is truncated, not ONNX, or nested too deeply",
        ) from None
    return proto


def _from_proto(proto: onnx.ModelProto, path: Path | None, own_location: str, keep_debug_info: bool) -> Program:
    where = str(path) if path else "model"
    notes = _notes_on_the_future(proto)
    findings = check_proto(proto, where)
    try:
        model = read_model(proto, is_plain=findings.is_plain)
    except Exception as error:  # noqa: BLE001 - the IR reports invalid protos by many exception types
        raise InputError(f"invalid model: {_first_cause(error)}", where=where) from None
    if findings.is_unsorted:
        _sort(model, where)
    base_dir = path.parent if path else None
    if findings.has_files:
        bind_files(model, base_dir or Path(), path, own_location)
    if findings.has_texts:
        _move_tensor_metadata(model)
    if findings.has_subgraphs:
        rename_shadowing_values(model)
    _normalise_old_ir_version(model)
    if not keep_debug_info and _may_have_debug_info(model, findings):
        strip_debug_info(model)
    leftover = Leftover(list(proto.training_info), findings.kept_types)
    program = Program(model, path=path, notes=notes, base_dir=base_dir)
    if leftover.training or leftover.types:
        program.leftover = leftover
    return program


def _notes_on_the_future(proto: onnx.ModelProto) -> list[str]:
    notes = []
    newest = defs.onnx_opset_version()
    for item in proto.opset_import:
        if item.domain in ("", "ai.onnx") and item.version > newest:
            notes.append(f"operator set {item.version} is newer than the newest known ({newest})")
    if proto.ir_version > onnx.IR_VERSION:
        notes.append(f"IR version {proto.ir_version} is newer than the newest known ({onnx.IR_VERSION})")
    n_unknown = len(UnknownFieldSet(proto)) + len(UnknownFieldSet(proto.graph))
    if n_unknown:
        notes.append(f"{n_unknown} fields that onnx {onnx.__version__} does not know are not written again")
    return notes


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + " ..."


def _sort(model: onnx_ir.Model, where: str) -> None:
    """Nodes in any order are common in the wild; each scope is put into topological order, as stable as can be."""
    for graph in [model.graph, *(function.graph for function in model.functions.values())]:
        try:
            graph.sort()
        except ValueError:
            raise InputError("the graph has a cycle", where=where, remedy="ONNX graphs are acyclic") from None


def _move_tensor_metadata(model: onnx_ir.Model) -> None:
    """The IR keeps a tensor's metadata beside the message that it came in, and writes both: keep them once."""
    for _, tensor in all_tensors(model):
        raw = getattr(tensor, "raw", None)
        if isinstance(raw, onnx.TensorProto) and raw.metadata_props:
            raw.ClearField("metadata_props")


def _normalise_old_ir_version(model: onnx_ir.Model) -> None:
    """Before IR version 4 every initializer had to be listed as an input, and was a constant all the same."""
    if model.ir_version >= 4:
        return
    graph = model.graph
    kept = [value for value in graph.inputs if not value.is_initializer()]
    if len(kept) != len(graph.inputs):
        graph.inputs[:] = kept
    model.ir_version = 4


def _may_have_debug_info(model: onnx_ir.Model, findings: Findings) -> bool:
    # TorchScript models carry their scopes in node names.
    return findings.has_texts or bool(model.metadata_props or model.doc_string) or model.producer_name == "pytorch"
