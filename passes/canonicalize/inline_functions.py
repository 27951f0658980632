"""Put the bodies of model-local functions where they are called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir
from opgraft.ir.program import Program, direct_subgraphs, static_shape
from opgraft.passes._pass import Contract, NoMatch, Pass, PassContext
from opgraft.passes._rewriter import Names, Rewriter, apply
from opgraft.passes.opset.convert import convert_opset

# Functions that call each other twice per level double the model per level; beyond this it is no longer a model.
_MAX_NEW_NODES = 1_000_000

Key = onnx_ir.OperatorIdentifier


@dataclass(frozen=True)
class InlineFunctions(Pass):
    """f(x), f(a) = g(h(a)) -> g(h(x))

    Nested functions, attribute parameters with and without defaults, absent inputs and subgraphs included. A body
    written for another operator set is inlined when it means the same at the model's. Where it does not, the standard
    and ONNX Runtime disagree (the runtime reads every body at the model's version): that call stays.
    """

    contract: ClassVar[Contract] = Contract.EXACT

    functions: str = ""
    """Names of functions to inline, `name` or `domain.name`, separated by `:`; all of them when empty."""

    def run(self, program: Program, context: PassContext) -> int:
        model = program.model
        selected = [key for key, function in model.functions.items() if self._selects(function)]
        called = {node.op_identifier() for _, graph in _scopes(model) for node in graph}
        if not called.intersection(selected) or not context.allows(self.name):
            return 0
        before = len(context.rewrites)
        names = context.facts.setdefault("names", Names(model))
        budget = _MAX_NEW_NODES
        for imports, graph in _scopes(model):
            for node in list(graph):
                if node.op_identifier() in selected:
                    budget = self._inline(node, imports, budget, program, context, names)
        _remove_uncalled(model, selected)
        return len(context.rewrites) - before

    def _selects(self, function: onnx_ir.Function) -> bool:
        wanted = self.functions.split(":")
        return not self.functions or function.name in wanted or f"{function.domain}.{function.name}" in wanted

    def _inline(
        self,
        call: onnx_ir.Node,
        imports: dict[str, int],
        budget: int,
        program: Program,
        context: PassContext,
        names: Names,
    ) -> int:
        """Inline one call; returns how many nodes may still be added."""
        function = program.model.functions[call.op_identifier()]
        n_nodes = sum(1 for _ in function.all_nodes())
        refused = _check_call(call, function, imports)
        if refused is None and n_nodes > budget:
            refused = NoMatch("inlining all calls would add more than {} nodes", call, _MAX_NEW_NODES)
        if refused is not None:
            context.missed(self.name, refused)
            return budget
        if not context.allows(self.name):
            return budget
        body = _Body(call, function, names)
        nodes = [body.clone_node(node) for node in function]
        results = [body.map(output) for output in function.outputs]
        if any(r is None and o.uses() for r, o in zip(results, call.outputs, strict=False)):
            body.discard(nodes)
            context.missed(self.name, NoMatch("an absent input is returned and used", call))
            return budget
        for domain, version in function.opset_imports.items():
            imports.setdefault(domain, version)
        _apply(self, call, nodes, results, context, names)
        return budget - n_nodes


def _scopes(model: onnx_ir.Model) -> Iterator[tuple[dict[str, int], onnx_ir.Graph]]:
    """Every graph with the imports of its scope: functions before their callers, the main graph last."""
    for function in _callees_first(model):
        yield function.opset_imports, function.graph
        for graph in function.subgraphs():
            yield function.opset_imports, graph
    yield model.graph.opset_imports, model.graph
    for graph in model.graph.subgraphs():
        yield model.graph.opset_imports, graph


def _callees_first(model: onnx_ir.Model) -> list[onnx_ir.Function]:
    ordered: dict[Key, onnx_ir.Function] = {}
    stack = [(key, False) for key in reversed(model.functions)]
    while stack:
        key, is_done = stack.pop()
        if key in ordered:
            continue
        if is_done:
            ordered[key] = model.functions[key]
            continue
        stack.append((key, True))
        callees = {n.op_identifier(): None for n in model.functions[key].all_nodes()}
        stack += [(callee, False) for callee in callees if callee in model.functions and callee not in ordered]
    return list(ordered.values())


def _check_call(call: onnx_ir.Node, function: onnx_ir.Function, imports: Mapping[str, int]) -> NoMatch | None:
    for domain, version in function.opset_imports.items():
        wanted = imports.get(domain, version)
        if wanted != version and not (domain == "" and _means_the_same(function, wanted)):
            return NoMatch(
                "the body is written for version {} of domain {!r} and may mean something else at {}",
                call,
                version,
                domain or "ai.onnx",
                wanted,
            )
    if len(call.inputs) > len(function.inputs) or len(call.outputs) > len(function.outputs):
        return NoMatch("the call has more inputs or outputs than the function", call)
    return None


def _means_the_same(function: onnx_ir.Function, version: int) -> bool:
    """Whether converting the body to another version of the standard would leave each of its nodes as it is."""
    copy = function.clone()
    nodes = list(copy.all_nodes())
    shell = onnx_ir.Graph([], [], nodes=[], opset_imports={"": version}, name="shell")
    conversion = convert_opset(onnx_ir.Model(shell, ir_version=10, functions=[copy]), version)
    return not conversion.refusals and list(copy.all_nodes()) == nodes


def _apply(
    pass_: Pass,
    call: onnx_ir.Node,
    nodes: list[onnx_ir.Node],
    results: list[onnx_ir.Value | None],
    context: PassContext,
    names: Names,
) -> None:
    graph = call.graph
    if not isinstance(graph, onnx_ir.Graph):
        raise ValueError(f"node {call.name!r} belongs to no graph")
    rewriter = Rewriter(graph, call)
    rewriter.nodes = nodes
    replacements = [r if r is not None else o for r, o in zip(results, call.outputs, strict=False)]
    token = context.recorder.before(call, nodes, replacements) if context.recorder is not None else None
    rewrite = context.applied(pass_, call.name or next((o.name for o in call.outputs if o.name), "") or call.op_type)
    apply(rewriter, replacements, names)
    if context.recorder is not None and token is not None:
        context.recorder.after(token, rewrite)


def _remove_uncalled(model: onnx_ir.Model, selected: list[Key]) -> None:
    called = {node.op_identifier() for _, graph in _scopes(model) for node in graph}
    for key in selected:
        if key not in called:
            del model.functions[key]


class _Body:
    """A copy of a function's body for one call: its parameters replaced, every name new."""

    def __init__(self, call: onnx_ir.Node, function: onnx_ir.Function, names: Names) -> None:
        self._names = names
        self._prefix = call.name or next((o.name for o in call.outputs if o.name), "") or function.name
        inputs = [*call.inputs, *[None] * (len(function.inputs) - len(call.inputs))]
        self._values: dict[onnx_ir.Value, onnx_ir.Value | None] = dict(zip(function.inputs, inputs, strict=True))
        defaults = {name: a for name, a in function.attributes.items() if a.value is not None}
        self._parameters: dict[str, onnx_ir.Attr] = {**defaults, **call.attributes}

    def map(self, value: onnx_ir.Value | None) -> onnx_ir.Value | None:
        """What stands for a value of the function; values captured by a graph parameter stand for themselves."""
        return self._values.get(value, value) if value is not None else None

    def clone_node(self, node: onnx_ir.Node) -> onnx_ir.Node:
        inputs = [self.map(value) for value in node.inputs]
        attributes = [a for attribute in node.attributes.values() if (a := self._attribute(attribute)) is not None]
        copy = onnx_ir.Node(
            node.domain,
            node.op_type,
            inputs,
            attributes,
            overload=node.overload,
            num_outputs=len(node.outputs),
            name=f"{self._prefix}/{node.name or node.op_type}",
            doc_string=node.doc_string,
            metadata_props=dict(node.metadata_props),
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            self._take_over(old, new)
        return copy

    def _take_over(self, old: onnx_ir.Value, new: onnx_ir.Value) -> None:
        """Names of dims in a function have nothing to do with those of the model: shapes are left out."""
        new.name = f"{self._prefix}/{old.name}" if old.name else old.name
        new.type = old.type
        self._values[old] = new

    def _attribute(self, attribute: onnx_ir.Attr) -> onnx_ir.Attr | None:
        if attribute.is_ref():
            given = self._parameters.get(attribute.ref_attr_name or "")
            if given is None:
                return None
            if given.is_ref():
                return onnx_ir.RefAttr(attribute.name, given.ref_attr_name or "", attribute.type)
            attribute = onnx_ir.Attr(attribute.name, given.type, given.value)
        if attribute.type == onnx_ir.AttributeType.GRAPH:
            return onnx_ir.AttrGraph(attribute.name, self._clone_graph(attribute.as_graph()))
        if attribute.type == onnx_ir.AttributeType.GRAPHS:
            return onnx_ir.AttrGraphs(attribute.name, [self._clone_graph(g) for g in attribute.as_graphs()])
        return attribute

    def _clone_graph(self, graph: onnx_ir.Graph) -> onnx_ir.Graph:
        def copy_of(value: onnx_ir.Value) -> onnx_ir.Value:
            name = self._names.fresh(f"{self._prefix}/{value.name}")
            shape = value.shape if static_shape(value) is not None else None
            copy = onnx_ir.Value(name=name, type=value.type, shape=shape, const_value=value.const_value)
            self._values[value] = copy
            return copy

        inputs = [copy_of(value) for value in graph.inputs]
        initializers = [copy_of(value) for value in graph.initializers.values()]
        nodes = [self.clone_node(node) for node in graph]
        for node in nodes:
            node.name = self._names.fresh(node.name or node.op_type)
            for output in node.outputs:
                output.name = self._names.fresh(output.name) if output.name else output.name
        outputs = [o for value in graph.outputs if (o := self.map(value)) is not None]
        return onnx_ir.Graph(inputs, outputs, nodes=nodes, initializers=initializers, name=graph.name)

    def discard(self, nodes: list[onnx_ir.Node]) -> None:
        """Take copies that are not needed off the values they read."""
        for node in nodes:
            inner = [n for graph in direct_subgraphs(node) for n in graph.all_nodes()]
            for unused in (node, *inner):
                for index in range(len(unused.inputs)):
                    unused.replace_input_with(index, None)
