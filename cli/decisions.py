"""Decisions: which passes were taken back, in a file that replays without measuring again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir
from opgraft.ir.errors import InputError, UsageError
from opgraft.ir.program import Program

FORMAT = 2


@dataclass
class Decisions:
    """What a run decided. `taken_back` maps a pass to why."""

    fingerprint: str
    pipeline: str
    target: str = "cpu"
    taken_back: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "pipeline": self.pipeline,
            "target": self.target,
            "taken_back": dict(sorted(self.taken_back.items())),
        }

    @classmethod
    def read(cls, path: Path) -> Decisions:
        """Raises InputError when the file is not a decisions file."""
        try:
            data = json.loads(path.read_text())
            if data["format"] != FORMAT:
                raise InputError(f"decisions of format {data['format']}, expected {FORMAT}", where=str(path))
            taken_back = {str(name): str(reason) for name, reason in data["taken_back"].items()}
            return cls(str(data["fingerprint"]), str(data["pipeline"]), str(data["target"]), taken_back)
        except FileNotFoundError:
            raise InputError("no such decisions file", where=str(path)) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"not a decisions file: {error}", where=str(path), remedy="write one with --decisions FILE"
            ) from None

    def check(self, model_fingerprint: str, target: str) -> None:
        """Raises UsageError when they were taken for another model or target."""
        if self.fingerprint != model_fingerprint:
            raise UsageError("the decisions file belongs to another model", remedy="make a new one without it")
        if self.target != target:
            raise UsageError(
                f"the decisions file belongs to target {self.target!r}, not {target!r}", remedy="make a new one"
            )


def fingerprint(program: Program) -> str:
    """A hash of the graph's structure, independent of large weights, names of files and the machine."""
    digest = hashlib.sha256()
    for graph in program.scopes():
        for value in (*graph.inputs, *graph.outputs):
            digest.update(f"{value.name}:{value.type}:{value.shape};".encode())
        for name, value in graph.initializers.items():
            tensor = value.const_value
            digest.update(f"{name}:{_tensor_text(tensor) if tensor is not None else ''};".encode())
        for node in graph:
            digest.update(f"{node.domain}::{node.op_type}".encode())
            digest.update(",".join(v.name or "" if v is not None else "" for v in node.inputs).encode())
            digest.update(",".join(o.name or "" for o in node.outputs).encode())
            for name, attribute in sorted(node.attributes.items()):
                if attribute.type not in (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS):
                    digest.update(f"{name}={attribute.type}:{_plain(attribute)};".encode())
    digest.update(repr(sorted(program.model.opset_imports.items())).encode())
    return digest.hexdigest()


# Shapes, axes and scalars decide which rewrites apply; the numbers of a weight do not.
_MAX_HASHED_BYTES = 4096


def _tensor_text(tensor: onnx_ir.TensorProtocol) -> str:
    text = f"{tensor.dtype}{tensor.shape}"
    if tensor.dtype == onnx_ir.DataType.STRING or tensor.nbytes > _MAX_HASHED_BYTES:
        return text
    return text + hashlib.sha256(tensor.tobytes()).hexdigest()


def _plain(attribute: onnx_ir.Attr) -> str:
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    if attribute.type == onnx_ir.AttributeType.TENSOR:
        return _tensor_text(attribute.as_tensor())
    if attribute.type == onnx_ir.AttributeType.TENSORS:
        return ",".join(_tensor_text(t) for t in attribute.as_tensors())
    return str(attribute.value)
