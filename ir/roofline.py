"""Roofline time: the least a node can take on a target, and which ceiling it meets first.

    seconds = launch + max(FLOPs / peak, activation bytes / bandwidth + weight bytes / bandwidth)

Activations are charged at the bandwidth of the node's own working set, since a producer leaves them in cache;
weights at that of all weights of the model, since one run passes over them all.

Source: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore
architectures", CACM 52(4), 2009; the launch term is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from opgraft.ir.cost import ModelCost, NodeCost, work_in_numbers
from opgraft.ir.dims import evaluate
from opgraft.ir.errors import UsageError
from opgraft.ir.target import Peaks, Target


@dataclass(frozen=True)
class NodeTime:
    """The estimate for one node, bodies included."""

    cost: NodeCost
    seconds: float | None
    """None when the cost is unknown."""
    constraint: str
    """"compute", "memory", "launch", "body" (an If, Loop or call), "none" (a constant) or "unknown"."""
    compute_s: float = 0.0
    memory_s: float = 0.0
    launch_s: float = 0.0


@dataclass(frozen=True)
class Roofline:
    """The estimate for a model: a lower bound on `target`, not a prediction."""

    target: Target
    bindings: Mapping[str, int]
    nodes: tuple[NodeTime, ...]
    seconds: float
    """Sum over nodes of known cost."""
    n_unknown: int

    def by_constraint(self) -> dict[str, float]:
        """Seconds per binding constraint."""
        sums: dict[str, float] = {}
        for row in self.nodes:
            if row.seconds:
                sums[row.constraint] = sums.get(row.constraint, 0.0) + row.seconds
        return sums


def roofline(cost: ModelCost, target: Target, bindings: Mapping[str, int] | None = None) -> Roofline:
    """Roofline time per node of a model on a target, with every named dim bound.

    Raises UsageError when a dim has no value, or the target has no peaks yet.
    """
    if target.peaks is None:
        raise UsageError(
            f"target {target.name!r} has no peaks",
            remedy="measure them: measured_peaks() of the runtime backend",
        )
    bindings = bindings or {}
    weights_bytes = evaluate(cost.weight_bytes, bindings)
    clock = _Clock(target.peaks, bindings, weights_bytes)
    nodes = tuple(clock.time(row) for row in cost.nodes)
    known = [row.seconds for row in nodes if row.seconds is not None]
    return Roofline(target, bindings, nodes, sum(known), len(nodes) - len(known))


class _Clock:
    def __init__(self, peaks: Peaks, bindings: Mapping[str, int], weights_bytes: int) -> None:
        self.peaks = peaks
        self.bindings = bindings
        self.weights_bandwidth = peaks.bandwidth(weights_bytes).value

    def time(self, row: NodeCost) -> NodeTime:
        if row.work is None:
            return NodeTime(row, None, "unknown")
        if row.kind == "constant":
            return NodeTime(row, 0.0, "none")
        if row.bodies and row.kind != "fused":
            return self._time_bodies(row)
        work = work_in_numbers(row.work, self.bindings)
        weights = work.weight_bytes
        activations = work.bytes_read + work.bytes_written - weights
        compute_s = work.flops / self.peaks.arithmetic(row.dtype).value
        memory_s = activations / self.peaks.bandwidth(activations).value + weights / self.weights_bandwidth
        launch_s = self.peaks.launch_s.value
        parts = {"launch": launch_s, "memory": memory_s, "compute": compute_s}
        constraint = max(parts, key=lambda name: parts[name])
        seconds = launch_s + max(compute_s, memory_s)
        return NodeTime(row, seconds, constraint, compute_s, memory_s, launch_s)

    def _time_bodies(self, row: NodeCost) -> NodeTime:
        """The slowest branch of an If; the trips of a loop; the body of a call, which the runtime inlines."""
        sums = [sum(self.time(inner).seconds or 0.0 for inner in body) for body in row.bodies]
        if row.kind == "call":
            return NodeTime(row, sums[0], "body")
        launch_s = self.peaks.launch_s.value
        trips = evaluate(row.trips, self.bindings)
        return NodeTime(row, launch_s + trips * max(sums, default=0.0), "body", launch_s=launch_s)
