"""Cut a tensor once instead of slice by slice."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import onnx_ir
from opgraft.ir.program import Program, is_op
from opgraft.passes._pass import Contract, Pass, PassContext
from opgraft.passes._rewriter import Names, Rewriter, apply
from opgraft.passes.simplify._extents import extents
from opgraft.passes.simplify._operands import normalize_axes, opset_of
from opgraft.passes.simplify._ranges import read_slices

_Key = tuple[onnx_ir.Value, int]
_Part = tuple[int, int, onnx_ir.Node]


class SlicesToSplit(Pass):
    """Slice(x, 0, a), Slice(x, a, b), ..., Slice(x, z, n) -> Split(x, (a, b - a, ..., n - z))

    Two or more slices by step 1 that together are every element of one axis, each once.
    """

    contract: ClassVar[Contract] = Contract.EXACT

    def run(self, program: Program, context: PassContext) -> int:
        names = context.facts.setdefault("names", Names(program.model))
        count = 0
        for graph in program.scopes():
            for (value, axis), parts in _cuts(graph):
                if not context.allows(self.name):
                    return count
                context.applied(self, parts[0][2].name or "Slice")
                _split(value, axis, parts, context, names)
                count += 1
        return count


def _cuts(graph: onnx_ir.Graph) -> Iterator[tuple[_Key, list[_Part]]]:
    """Values and axes that are sliced into parts without gap or overlap; the parts in the order of the graph."""
    found: dict[_Key, list[_Part]] = {}
    sizes: dict[_Key, int] = {}
    for node in graph:
        value = node.inputs[0] if is_op(node, "Slice") and node.inputs else None
        slices = read_slices(node) if value is not None else None
        dims = extents(value)
        if value is None or dims is None or slices is None or len(slices) != 1 or slices[0].step != 1:
            continue
        axes = normalize_axes([slices[0].axis], len(dims))
        size = dims[axes[0]] if axes is not None else None
        if axes is None or not isinstance(size, int):
            continue
        taken = slices[0].range_of(size)
        if taken:
            found.setdefault((value, axes[0]), []).append((taken.start, taken.stop, node))
            sizes[value, axes[0]] = size
    for key, parts in found.items():
        bounds = sorted((start, stop) for start, stop, _ in parts)
        joined = all(a[1] == b[0] for a, b in pairwise(bounds))
        if len(parts) > 1 and joined and bounds[0][0] == 0 and bounds[-1][1] == sizes[key]:
            yield key, parts


def _split(value: onnx_ir.Value, axis: int, parts: list[_Part], context: PassContext, names: Names) -> None:
    ordered = sorted(parts, key=lambda part: part[0])
    lengths = [stop - start for start, stop, _ in ordered]
    first = parts[0][2]
    graph = first.graph
    if not isinstance(graph, onnx_ir.Graph):
        return
    op = Rewriter(graph, first)
    attributes: dict[str, Any] = {"axis": axis}
    operands = [value]
    if opset_of(first, context) < 13:
        attributes["split"] = lengths
    else:
        operands.append(op.constant(np.array(lengths, dtype=np.int64), "split"))
    outputs = op.op("Split", operands, n_outputs=len(parts), **attributes)
    result = {node: outputs[i] for i, (_, _, node) in enumerate(ordered)}
    apply(op, [result[first]], names)
    for _, _, node in parts[1:]:
        apply(Rewriter(graph, node), [result[node]], names)
