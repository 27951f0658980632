"""Write down the shapes that are known."""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import onnx_ir
from opgraft.ir.program import Program, nested_graphs
from opgraft.ir.shapes import Extent, Extents, ShapeAnalysis


def record_shapes(program: Program, facts: ShapeAnalysis) -> int:
    """Write down what is known of the values of the main graph and its subgraphs. Returns how many records changed.

    What follows from the inputs takes the place of a record that says less or something else; the rest of a record
    stays, unless it is of a rank that cannot be. Function bodies and the model's interface stay as they are.
    """
    changed = 0
    merged: dict[tuple[int, int], _Merged] = {}
    for graph in nested_graphs(program.graph):
        for node in graph:
            for value in node.outputs:
                if not value.is_graph_output() and value.name:
                    changed += _record(value, facts, merged)
    return changed


# What was known, what was recorded (both kept, so that their identities stay theirs), and the better record, if any.
_Merged: TypeAlias = "tuple[Extents, onnx_ir.Shape | None, onnx_ir.Shape | None]"


def _record(value: onnx_ir.Value, facts: ShapeAnalysis, merged: dict[tuple[int, int], _Merged]) -> bool:
    if value.type is not None and not isinstance(value.type, onnx_ir.TensorType):
        return False
    dtype, known, recorded = facts.dtype(value), facts.shape(value), value.shape
    changed = value.type is None and dtype is not None
    if value.type is None and dtype is not None:
        value.type = onnx_ir.TensorType(dtype)
    if known is None:
        return changed
    key = id(known), id(recorded)
    found = merged.get(key)
    if found is None:
        found = merged[key] = known, recorded, _better_record(known, recorded)
    if found[2] is None:
        return changed
    value.shape = found[2]
    return True


def _better_record(known: Extents, recorded: onnx_ir.Shape | None) -> onnx_ir.Shape | None:
    """Both together; None when that is what is recorded."""
    said = [None] * len(known) if recorded is None or len(recorded) != len(known) else list(recorded)
    # Frozen, because many values share it.
    shape = onnx_ir.Shape([s if k is None else _spelled(k) for k, s in zip(known, said, strict=True)], frozen=True)
    return None if shape == recorded else shape


@lru_cache(maxsize=1024)
def _spelled(size: Extent) -> int | str | None:
    return size if size is None or isinstance(size, int) else str(size)
