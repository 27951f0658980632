"""Decisions: which passes were taken back, in a file that replays without measuring again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir
from opgraft.ir.errors import InputError
from opgraft.ir.program import Program

FORMAT = 1


@dataclass
class Decisions:
    """What a run decided. `taken_back` maps a pass to why."""

    fingerprint: str
    pipeline: str
    taken_back: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "pipeline": self.pipeline,
            "taken_back": dict(sorted(self.taken_back.items())),
        }

    @classmethod
    def read(cls, path: Path) -> Decisions:
        """Raises InputError when the file is not a decisions file."""
        try:
            data = json.loads(path.read_text())
            if data["format"] != FORMAT:
                raise InputError(f"decisions of format {data['format']}, expected {FORMAT}", where=str(path))
            return cls(str(data["fingerprint"]), str(data["pipeline"]), dict(data["taken_back"]))
        except FileNotFoundError:
            raise InputError("no such decisions file", where=str(path)) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"not a decisions file: {error}", where=str(path), remedy="write one with --decisions FILE"
            ) from None


def fingerprint(program: Program) -> str:
    """A hash of the graph's structure, independent of weights, names of files and the machine."""
    digest = hashlib.sha256()
    for graph in program.scopes():
        for value in (*graph.inputs, *graph.outputs):
            digest.update(f"{value.name}:{value.type}:{value.shape};".encode())
        for name, value in graph.initializers.items():
            tensor = value.const_value
            digest.update(f"{name}:{tensor.dtype if tensor else ''}:{tensor.shape if tensor else ''};".encode())
        for node in graph:
            digest.update(f"{node.domain}::{node.op_type}".encode())
            digest.update(",".join(v.name or "" if v is not None else "" for v in node.inputs).encode())
            digest.update(",".join(o.name or "" for o in node.outputs).encode())
            for name, attribute in sorted(node.attributes.items()):
                if attribute.type not in (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS):
                    digest.update(f"{name}={attribute.type}:{_plain(attribute)};".encode())
    digest.update(repr(sorted(program.model.opset_imports.items())).encode())
    return digest.hexdigest()


def _plain(attribute: onnx_ir.Attr) -> str:
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    if attribute.type == onnx_ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return f"{tensor.dtype}{tensor.shape}" + (tensor.tobytes().hex() if tensor.nbytes <= 4096 else "")
    return str(attribute.value)
