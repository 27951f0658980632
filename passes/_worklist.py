"""One matcher for all node passes: indexed by root operator, driven by a worklist.

Every node is visited once; after a rewrite only its neighbourhood is visited again. So a group of passes reaches
its fixpoint in time linear in nodes plus rewrites.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import onnx_ir
from opgraft.ir.errors import ContractError
from opgraft.ir.half_precision import has_half, may_be_unrounded
from opgraft.ir.program import DEFAULT_DOMAINS, Program, constant_tensor, direct_subgraphs
from opgraft.ir.shape_conflicts import find_conflict
from opgraft.ir.shapes import ShapeAnalysis
from opgraft.passes._pass import Contract, NoMatch, Pass, PassContext, Replacement
from opgraft.passes._rewriter import Names, Rewriter, apply, is_dead, remove_dead

# A group that rewrites more often than this per node is two passes undoing each other.
_MAX_REWRITES_PER_NODE = 12


class NodePass(Pass):
    """A pass anchored at one node: `visit` returns the values that stand for its outputs, or why not."""

    roots: ClassVar[tuple[str, ...]] = ()
    """Operator types of the anchor; empty means every operator."""
    domains: ClassVar[tuple[str, ...]] = DEFAULT_DOMAINS
    partners: ClassVar[tuple[str, ...]] = ()
    """Operator types, one of which must be somewhere in the model for the pass to apply; empty means any model."""

    @property
    def anchors(self) -> list[tuple[str, str]]:
        """(domain, operator) of the nodes to visit; empty means all."""
        return [(domain, root) for root in self.roots for domain in self.domains]

    @abstractmethod
    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch: ...

    def run(self, program: Program, context: PassContext) -> int:
        return run_group([self], program, context)


def run_group(passes: Sequence[NodePass], program: Program, context: PassContext) -> int:
    """Apply node passes together until none of them applies anywhere. Returns the number of rewrites."""
    active = [p for p in passes if p.name not in context.disabled]
    fixpoints: dict[tuple[NodePass, ...], int] = context.facts.setdefault("fixpoints", {})
    key = tuple(active)
    if fixpoints.get(key) == context.n_changes:
        return 0
    names = context.facts.get("names")
    if names is None:
        names = context.facts["names"] = Names(program.model)
    before = len(context.rewrites)
    anchors = {anchor for p in active for anchor in p.anchors}
    everywhere = any(not p.anchors for p in active)
    graphs = [(graph, {(node.domain, node.op_type) for node in graph}) for graph in program.scopes()]
    # What replaces a graph output may be an Identity that no pass made.
    present = {op_type for _, operators in graphs for _, op_type in operators} | {"Identity"}
    for graph, operators in graphs:
        if everywhere or not anchors.isdisjoint(operators):
            _Worklist(active, graph, context, names, present, has_subgraphs=len(graphs) > 1).run()
    fixpoints[key] = context.n_changes
    return len(context.rewrites) - before


class _Worklist:
    def __init__(
        self,
        passes: Sequence[NodePass],
        graph: onnx_ir.Graph,
        context: PassContext,
        names: Names,
        present: set[str],
        *,
        has_subgraphs: bool,
    ) -> None:
        self.has_subgraphs = has_subgraphs
        self.passes = passes
        self.present = present
        """Operator types that are, or were, in the model."""
        self.graph = graph
        self.context = context
        self.names = names
        self.candidates: dict[tuple[str, str], list[tuple[NodePass, str]]] = {}
        """(domain, operator) -> the passes that visit such nodes, with their names."""
        nodes = list(graph)
        # With the nodes of subgraphs, which a rewrite may move into this graph.
        n_nodes = len(nodes) + sum(_n_inner_nodes(node) for node in nodes)
        self.budget = _MAX_REWRITES_PER_NODE * n_nodes + 100
        self.queue: deque[onnx_ir.Node] = deque(node for node in nodes if self._passes_for(node))
        self.queued: set[onnx_ir.Node] = set(self.queue)
        self.has_half = _has_half(context)
        self.seconds: dict[str, float] = context.facts.setdefault("seconds", {})
        for pass_ in passes:
            self.seconds.setdefault(pass_.name, 0.0)

    def run(self) -> None:
        while self.queue:
            node = self.queue.popleft()
            self.queued.discard(node)
            if node.graph is not self.graph:
                continue
            if is_dead(node):
                self._push(remove_dead([node], self.graph))
                continue
            self._visit(node)

    def _visit(self, node: onnx_ir.Node) -> None:
        context, seconds = self.context, self.seconds
        rewriter = Rewriter(self.graph, node)
        start = time.perf_counter()
        for pass_, name in self._passes_for(node):
            result = pass_.visit(node, rewriter, context)
            if not isinstance(result, NoMatch) and self._reveals(result):
                result = NoMatch("a constant would show that an operator which may never run does not fit", node)
            if isinstance(result, NoMatch):
                if context.keep_near_misses:
                    context.missed(name, result)
                if rewriter.nodes or rewriter.initializers:
                    rewriter.discard()
                end = time.perf_counter()
                seconds[name] += end - start
                start = end
            elif context.allows(name):
                self._rewrite(pass_, node, rewriter, result)
                seconds[name] += time.perf_counter() - start
                return
            else:
                rewriter.discard()

    def _rewrite(self, pass_: NodePass, node: onnx_ir.Node, rewriter: Rewriter, result: Replacement) -> None:
        context = self.context
        self.budget -= 1
        if self.budget < 0:
            recent = sorted({r.pass_name for r in context.rewrites[-50:]})
            raise ContractError(f"passes {', '.join(recent)} undo each other", where=f"node {node.name!r}")
        rewrite = context.applied(pass_, _site(node), self._contract(pass_, rewriter, result))
        recorder = context.recorder
        token = recorder.before(node, rewriter.nodes, result) if recorder is not None else None
        operators = {made.op_type for made in rewriter.nodes}
        is_new = not operators <= self.present
        changed = apply(rewriter, result, self.names)
        if recorder is not None and token is not None:
            recorder.after(token, rewrite)
        if is_new:
            # Passes that were of no use may apply now, also where none was asked before.
            self.present |= operators
            self.candidates.clear()
            self._push(list(self.graph))
        self._push(changed)
        self._push([use.node for c in changed for o in c.outputs for use in o.uses()])

    def _reveals(self, result: Replacement) -> bool:
        """Whether a constant takes the place of a computed value where a branch does not fit what is known of it: a
        runtime, and the standard's own checker, refuse a model in which they see that."""
        return self.has_subgraphs and any(constant_tensor(v) is not None for v in result) and self.has_conflict

    @cached_property
    def has_conflict(self) -> bool:
        program = self.context.program
        return find_conflict(program, ShapeAnalysis(program)) is not None

    def _contract(self, pass_: NodePass, rewriter: Rewriter, result: Replacement) -> Contract:
        """What the pass promises, less where it brings together nodes between which half precision is not rounded."""
        if pass_.contract is not Contract.EXACT or not self.has_half:
            return pass_.contract
        operands = [value for node in rewriter.nodes for value in node.inputs]
        return Contract.NUMERIC if any(map(may_be_unrounded, (*operands, *result))) else Contract.EXACT

    def _passes_for(self, node: onnx_ir.Node) -> list[tuple[NodePass, str]]:
        """The passes that may apply at such nodes. Who asks why a pass does not apply is told by the pass."""
        key = node.domain, node.op_type
        found = self.candidates.get(key)
        if found is None:
            ask_all = self.context.keep_near_misses
            found = self.candidates[key] = [
                (p, p.name)
                for p in self.passes
                if (not p.anchors or key in p.anchors)
                and (ask_all or not p.partners or not self.present.isdisjoint(p.partners))
            ]
        return found

    def _push(self, nodes: Sequence[onnx_ir.Node]) -> None:
        for node in nodes:
            if node.graph is self.graph:
                if node not in self.queued and self._passes_for(node):
                    self.queued.add(node)
                    self.queue.append(node)
            elif node.graph is not None:
                owner = self._owner(node)
                if owner is not None and owner not in self.queued:
                    self.queued.add(owner)
                    self.queue.append(owner)

    def _owner(self, node: onnx_ir.Node) -> onnx_ir.Node | None:
        """The node of this graph whose subgraph holds `node`."""
        graph = node.graph
        while isinstance(graph, onnx_ir.Graph) and graph is not self.graph:
            parent = getattr(graph, "parent_node", None)
            if parent is None:
                return None
            node, graph = parent, parent.graph
        return node if graph is self.graph else None


def _has_half(context: PassContext) -> bool:
    found = context.facts.get("has half")
    if found is None:
        found = context.facts["has half"] = has_half(context.program)
    return bool(found)


def _n_inner_nodes(node: onnx_ir.Node) -> int:
    if not node.attributes:
        return 0
    return sum(1 for graph in direct_subgraphs(node) for _ in graph.all_nodes())


def _site(node: onnx_ir.Node) -> str:
    return node.name or next((o.name for o in node.outputs if o.name), "") or node.op_type
