"""What a model costs: FLOPs, bytes read and written per node and in total, symbolic in the named dims.

The analysis reads recorded shapes and never guesses: a node whose operator has no rule, or whose shapes are
not recorded, is *unknown* with the reason, and totals name what they leave out.

Control flow: an If costs the larger of its branches, a Loop or Scan its body times the trip count (a symbol
named "<node>.trips" where the count is not constant). A function call costs its body, specialised to the
call; where the body runs as one kernel (domains in `fused_domains`), its traffic is that of its inputs and
outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import onnx_ir as ir
from opgraft.ir import cost_attention, cost_contractions, cost_rules
from opgraft.ir.cost_calls import CallSpecializer
from opgraft.ir.dims import Size, add_all, dim, evaluate, names_of
from opgraft.ir.node_work import RULES, NodeView, UnknownCost, Work, bytes_of

if TYPE_CHECKING:
    from opgraft.ir.roofline import Roofline
    from opgraft.ir.target import Target

# The rules register themselves when their modules are imported.
_RULE_MODULES = (cost_rules, cost_contractions, cost_attention)

FUSED_DOMAINS = frozenset({"opgraft.kernels"})


@dataclass(frozen=True)
class NodeCost:
    """The cost of one node, bodies included."""

    node: ir.Node
    scope: str
    """The control-flow and call nodes around it, outermost first; empty at the top."""
    kind: str
    """The rule's kind, or "constant", "if", "loop", "call", "fused", "unknown"."""
    work: Work | None
    """None when unknown."""
    reason: str = ""
    """Why it is unknown."""
    dtype: str = "float32"
    """The element type whose arithmetic peak bounds it."""
    trips: Size = 1
    """How often `bodies` run for one execution of this node."""
    bodies: tuple[tuple[NodeCost, ...], ...] = ()

    @property
    def where(self) -> str:
        """The node's place, for messages."""
        name = self.node.name or (self.node.outputs[0].name if self.node.outputs else "")
        return f"{self.scope}{self.node.op_type} {name!r}"

    def walk(self) -> Iterator[NodeCost]:
        """This node and everything inside it."""
        yield self
        for body in self.bodies:
            for row in body:
                yield from row.walk()


@dataclass(frozen=True)
class ModelCost:
    """The cost of a model: a row per node, totals, and what is not known."""

    nodes: tuple[NodeCost, ...]
    total: Work
    """Of all known nodes; see `unknown`."""
    weight_bytes: Size
    """Bytes stored with the model: every initializer and constant once."""
    unknown: tuple[NodeCost, ...] = field(repr=False)
    """Nodes without a known cost, bodies searched, each with its reason."""

    @property
    def dims(self) -> frozenset[str]:
        """Names that have to be bound to get numbers."""
        parts = (row.work for row in self.nodes if row.work is not None)
        return frozenset().union(*(names_of(size) for work in parts for size in vars(work).values()))

    def roofline(self, target: Target, bindings: Mapping[str, int] | None = None) -> Roofline:
        """Least seconds per node on a target; see `opgraft.ir.roofline`."""
        from opgraft.ir.roofline import roofline

        return roofline(self, target, bindings)

    def by_operator(self) -> dict[str, Work]:
        """Known work per operator type at the top level, in order of first appearance."""
        groups: dict[str, list[Work]] = {}
        for row in self.nodes:
            if row.work is not None and row.kind != "constant":
                groups.setdefault(row.node.op_type, []).append(row.work)
        return {operator: Work.sum(works) for operator, works in groups.items()}


@dataclass(frozen=True)
class Amounts:
    """The fields of `Work` as numbers."""

    flops: int
    contraction_flops: int
    bytes_read: int
    bytes_written: int
    weight_bytes: int


def work_in_numbers(work: Work, bindings: Mapping[str, int]) -> Amounts:
    """`work` with every named dim bound.

    Raises UsageError when a dim has no value.
    """
    return Amounts(*(evaluate(amount, bindings) for amount in vars(work).values()))


def cost_of(model: ir.Model, *, fused_domains: frozenset[str] = FUSED_DOMAINS) -> ModelCost:
    """The cost of a model from its recorded shapes."""
    counter = _Counter(model, fused_domains)
    nodes = counter.rows(model.graph, "")
    known = [row.work for row in nodes if row.work is not None]
    unknown = tuple(row for top in nodes for row in top.walk() if row.work is None and not row.bodies)
    return ModelCost(nodes, Work.sum(known), _stored_bytes(model), unknown)


class _Counter:
    def __init__(self, model: ir.Model, fused_domains: frozenset[str]) -> None:
        self.functions = model.functions
        self.fused_domains = fused_domains
        self.specializer = CallSpecializer(model.functions)

    def rows(self, nodes: Iterable[ir.Node], scope: str) -> tuple[NodeCost, ...]:
        return tuple(self.row(node, scope) for node in nodes)

    def row(self, node: ir.Node, scope: str) -> NodeCost:
        if node.op_identifier() in self.functions:
            return self._call(node, scope)
        if not node.domain and node.op_type == "If":
            return self._if(node, scope)
        if not node.domain and node.op_type in ("Loop", "Scan", "SequenceMap"):
            return self._loop(node, scope)
        if not node.domain and node.op_type == "Constant":
            return NodeCost(node, scope, "constant", Work())
        rule = RULES.get((node.domain, node.op_type))
        if rule is None:
            name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            return NodeCost(node, scope, "unknown", None, f"no cost rule for operator {name}")
        view = NodeView(node)
        try:
            return NodeCost(node, scope, rule.kind, rule.count(view), dtype=rule.dtype(view))
        except UnknownCost as error:
            return NodeCost(node, scope, "unknown", None, str(error))
        except (ArithmeticError, LookupError, TypeError, ValueError):
            # A rule met ranks or attributes that the operator does not allow: the model is invalid.
            reason = "recorded shapes or attributes do not fit the operator"
            return NodeCost(node, scope, "unknown", None, reason)

    def _if(self, node: ir.Node, scope: str) -> NodeCost:
        bodies = self._bodies(node, scope)
        works = [_sum_known(body) for body in bodies]
        reason = _first_reason(bodies)
        work = None if reason else works[0]
        if work is not None:
            for other in works[1:]:
                work = work.at_most(other)
        return NodeCost(node, scope, "if", work, reason, bodies=bodies)

    def _loop(self, node: ir.Node, scope: str) -> NodeCost:
        bodies = self._bodies(node, scope)
        trips = _trip_count(node)
        reason = _first_reason(bodies)
        work = None if reason else Work.sum([_sum_known(body) for body in bodies]).times(trips)
        return NodeCost(node, scope, "loop", work, reason, trips=trips, bodies=bodies)

    def _bodies(self, node: ir.Node, scope: str) -> tuple[tuple[NodeCost, ...], ...]:
        inner = f"{scope}{node.op_type} {node.name!r} / "
        graphs = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
        return tuple(self.rows(graph, inner) for graph in graphs)

    def _call(self, node: ir.Node, scope: str) -> NodeCost:
        try:
            body = self.rows(self.specializer.body(node), f"{scope}{node.op_type} {node.name!r} / ")
            reason = _first_reason((body,))
            work = None if reason else _sum_known(body)
            if node.domain not in self.fused_domains:
                return NodeCost(node, scope, "call", work, reason, bodies=(body,))
            view = NodeView(node)
            if work is not None:
                arithmetic = work.flops - work.contraction_flops
                work = view.work(arithmetic, contraction=work.contraction_flops)
            return NodeCost(node, scope, "fused", work, reason, bodies=(body,))
        except UnknownCost as error:
            return NodeCost(node, scope, "unknown", None, str(error))


def _trip_count(node: ir.Node) -> Size:
    """The constant trip count, the extent of the first scanned input, or a symbol."""
    view = NodeView(node)
    try:
        if node.op_type == "Loop":
            constant = view.constant_ints(0)
            if constant is not None and len(constant) == 1 and constant[0] >= 0:
                return constant[0]
        elif node.op_type == "Scan":
            n_scanned = view.integer("num_scan_inputs", 0)
            axes = view.integers("scan_input_axes") or (0,)
            return view.extent(len(node.inputs) - n_scanned, axes[0])
    except UnknownCost:
        pass
    return dim(f"{node.name}.trips")


def _sum_known(rows: tuple[NodeCost, ...]) -> Work:
    return Work.sum([row.work for row in rows if row.work is not None])


def _first_reason(bodies: tuple[tuple[NodeCost, ...], ...]) -> str:
    for body in bodies:
        for row in body:
            if row.work is None:
                return row.reason if row.bodies else f"{row.where}: {row.reason}"
    return ""


def _stored_bytes(model: ir.Model) -> Size:
    """Initializers of all graphs and outputs of Constant nodes; those of unknown size are left out."""
    sizes: list[Size] = []
    for graph in model.graphs():
        constants = (node for node in graph if node.op_type == "Constant" and not node.domain)
        for value in chain(graph.initializers.values(), *(node.outputs for node in constants)):
            try:
                sizes.append(bytes_of(value))
            except UnknownCost:
                continue
    return add_all(sizes)
