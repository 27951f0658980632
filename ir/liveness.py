"""Which values are alive when, and the memory that takes: activations only, one buffer per value.

Steps are the nodes in execution order. A value lives from the step that makes it to the last that reads it;
graph inputs live throughout, since the caller holds them, and graph outputs to the end. Weights are not
counted. A runtime that reuses an input's buffer for the output, or aliases a Reshape, stays below this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
from opgraft.ir.dims import Size, add_all, evaluate
from opgraft.ir.errors import InputError
from opgraft.ir.graphview import GraphLike, bodies_of, values_read
from opgraft.ir.node_work import UnknownCost, bytes_of, is_constant


@dataclass(frozen=True)
class LiveRange:
    """Steps `first` to `last`, both included; -1 is before the first step."""

    value: ir.Value
    first: int
    last: int


@dataclass(frozen=True)
class PeakMemory:
    """The most memory alive at once."""

    n_bytes: int
    step: int
    node: ir.Node | None
    """The node running then; None for a graph without nodes."""
    complete: bool
    """False when values of unknown size were left out."""


@dataclass(frozen=True)
class Liveness:
    """Live ranges of one graph level and the bytes alive at each step."""

    order: tuple[ir.Node, ...]
    ranges: tuple[LiveRange, ...]
    live_bytes: tuple[Size, ...]
    """Per step, without what happens inside of subgraphs."""
    unknown: tuple[tuple[ir.Value, str], ...]
    """Values of unknown size, with the reason."""
    inner: Mapping[int, tuple[Liveness, ...]] = field(repr=False, default_factory=dict)
    """Per step of a node with subgraphs, the liveness of each."""

    def peak(self, bindings: Mapping[str, int] | None = None) -> PeakMemory:
        """The step with the most bytes alive, subgraphs included.

        Raises UsageError when a dim has no value.
        """
        bindings = bindings or {}
        complete = not self.unknown
        best, best_step = 0, -1
        for step, size in enumerate(self.live_bytes):
            inside = [body.peak(bindings) for body in self.inner.get(step, ())]
            complete &= all(peak.complete for peak in inside)
            n_bytes = evaluate(size, bindings) + max((peak.n_bytes for peak in inside), default=0)
            if n_bytes > best or best_step < 0:
                best, best_step = n_bytes, step
        node = self.order[best_step] if best_step >= 0 else None
        return PeakMemory(best, best_step, node, complete)


def liveness(graph: GraphLike, order: Sequence[ir.Node] | None = None) -> Liveness:
    """Live ranges of the values of `graph` when its nodes run in `order` (default: as they are listed).

    Raises InputError when a node runs before one that it reads from.
    """
    steps = tuple(graph if order is None else order)
    ranges = _live_ranges(graph, steps)
    begins: list[list[Size]] = [[] for _ in steps]
    ends: list[list[Size]] = [[] for _ in range(len(steps) + 1)]
    unknown: list[tuple[ir.Value, str]] = []
    for span in ranges:
        try:
            size = bytes_of(span.value)
        except UnknownCost as error:
            unknown.append((span.value, str(error)))
            continue
        if steps:
            begins[max(span.first, 0)].append(size)
            ends[span.last + 1].append(-size)
    alive: Size = 0
    live_bytes = []
    for started, ended in zip(begins, ends, strict=False):
        alive = add_all([alive, *started, *ended])
        live_bytes.append(alive)
    inner = {}
    for step, node in enumerate(steps):
        inside = tuple(liveness(body) for body in bodies_of(node))
        if inside:
            inner[step] = inside
    return Liveness(steps, ranges, tuple(live_bytes), tuple(unknown), inner)


def _live_ranges(graph: GraphLike, steps: tuple[ir.Node, ...]) -> tuple[LiveRange, ...]:
    end = len(steps) - 1
    first = {value: -1 for value in graph.inputs if not is_constant(value)}
    last = dict.fromkeys(first, end)
    made_here = {value for node in steps for value in node.outputs}
    for step, node in enumerate(steps):
        for value in values_read(node):
            if value in first:
                last[value] = max(last[value], step)
            elif value in made_here and not is_constant(value):
                raise InputError(f"value {value.name!r} is read before it is made", where=f"node {node.name!r}")
        for value in node.outputs:
            if value.name and not is_constant(value):
                first[value] = last[value] = step
    for value in graph.outputs:
        if value in first:
            last[value] = end
    return tuple(LiveRange(value, first[value], last[value]) for value in first)
