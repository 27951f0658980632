"""Compute each shape once, however it is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import ClassVar

import onnx_ir
from opgraft.ir.dims import names_of
from opgraft.ir.integer_contents import Integers
from opgraft.ir.integer_rules import has_rule
from opgraft.ir.program import Program
from opgraft.ir.shapes import ShapeAnalysis
from opgraft.passes._pass import Contract, NoMatch, Pass, PassContext
from opgraft.passes._rewriter import Names, Rewriter, apply
from opgraft.passes.simplify.fold_shapes import shape_facts


class MergeEqualShapes(Pass):
    """Concat(Shape(x)[0], 8), Slice(Shape(f(x)), ...) of the same sizes -> the first of them

    For integer tensors whose elements are known expressions of the model's dims, of the same type and shape. Dims that
    several inputs name are left out: ONNX Runtime does not check that they are equal.
    """

    contract: ClassVar[Contract] = Contract.EXACT
    after: ClassVar[tuple[str, ...]] = ("infer-shapes",)

    def run(self, program: Program, context: PassContext) -> int:
        before = len(context.rewrites)
        facts = shape_facts(context)
        shared = _shared_names(program, facts)
        names = context.facts.get("names") or context.facts.setdefault("names", Names(program.model))
        for graph in program.scopes():
            first: dict[Hashable, onnx_ir.Value] = {}
            for node in list(graph):
                if node.graph is not graph or len(node.outputs) != 1 or not has_rule(node):
                    continue
                output = node.outputs[0]
                key = _key(facts.integers(output), shared)
                if key is None:
                    continue
                twin = first.get(key)
                producer = twin.producer() if twin is not None else None
                # A twin may have lost its users to other twins since, and gone with them.
                if twin is None or producer is None or producer.graph is not graph:
                    first[key] = output
                    continue
                if output.is_graph_output():
                    context.missed(self.name, NoMatch("a graph output keeps its own node", output))
                elif context.allows(self.name):
                    self._replace(node, twin, graph, names, context)
        return len(context.rewrites) - before

    def _replace(
        self, node: onnx_ir.Node, twin: onnx_ir.Value, graph: onnx_ir.Graph, names: Names, context: PassContext
    ) -> None:
        token = context.recorder.before(node, [], [twin]) if context.recorder is not None else None
        rewrite = context.applied(self, node.name or node.outputs[0].name or node.op_type)
        apply(Rewriter(graph, node), [twin], names)
        if context.recorder is not None and token is not None:
            context.recorder.after(token, rewrite)


def _shared_names(program: Program, facts: ShapeAnalysis) -> frozenset[str]:
    """Dims that more than one input has."""
    counts = Counter(
        name
        for value in program.graph.inputs
        for name in {n for size in facts.sizes(value) or () for n in names_of(size)}
    )
    return frozenset(name for name, count in counts.items() if count > 1)


def _key(content: Integers | None, shared: frozenset[str]) -> Hashable | None:
    """What two tensors have in common that are equal in every run; None when that is not known, or no dim is in it."""
    if content is None:
        return None
    elements = content.elements.reshape(-1).tolist()
    if any(e is None for e in elements) or all(isinstance(e, int) for e in elements):
        return None
    if any(not names_of(e).isdisjoint(shared) for e in elements):
        return None
    return content.dtype, content.elements.shape, tuple(elements)
