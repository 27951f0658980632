"""Put planned nodes into the model, or take them back: naming, rewiring, version numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir


@dataclass
class Plan:
    """What will replace the model's nodes; nothing of it is visible in the model yet."""

    replacements: list[tuple[onnx_ir.Node, list[onnx_ir.Node], list[onnx_ir.Value | None]]] = field(
        default_factory=list
    )
    """(node of the model, the nodes that stand for it, what stands for its outputs)."""
    created: dict[onnx_ir.Node, None] = field(default_factory=dict)
    """Every node written, those included that were themselves rewritten; in order."""
    is_exact: bool = True
    """Whether what is run afterwards rounds as what was run before."""


def scoped_graphs(
    model: onnx_ir.Model,
) -> Iterator[tuple[onnx_ir.Graph | onnx_ir.Function, onnx_ir.Graph, int | None]]:
    """Every graph with the graph or function whose operator set it uses, and that version."""
    scopes: list[onnx_ir.Graph | onnx_ir.Function] = [model.graph, *model.functions.values()]
    for scope in scopes:
        top = scope.graph if isinstance(scope, onnx_ir.Function) else scope
        default = default_version(scope.opset_imports)
        yield scope, top, default
        for graph in top.subgraphs():
            yield scope, graph, default


def default_version(imports: dict[str, int]) -> int | None:
    """The version of the default domain, under either of its names."""
    return imports.get("", imports.get("ai.onnx"))


def detach(node: onnx_ir.Node) -> None:
    """Make `node` read nothing."""
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)


def discard(plan: Plan) -> None:
    """Take the written nodes off the values of the model."""
    for node in plan.created:
        detach(node)


def apply(model: onnx_ir.Model, plan: Plan, version: int) -> None:
    """Put the replacements in place and import `version` everywhere."""
    lowered = any((v or 0) > version for _, _, v in scoped_graphs(model))
    if plan.replacements:
        names = _Names(model)
        for old, nodes, results in plan.replacements:
            _replace(old, nodes, results, names)
    for scope, graph, _ in scoped_graphs(model):
        for imports in (scope.opset_imports, graph.opset_imports):
            if default_version(imports) is not None:
                imports.pop("ai.onnx", None)
                imports[""] = version
        for node in graph:
            if node.domain == "":
                node.version = None
    _set_ir_version(model, version, lowered)


def _replace(old: onnx_ir.Node, nodes: list[onnx_ir.Node], results: list[onnx_ir.Value | None], names: _Names) -> None:
    graph = old.graph
    if graph is None:
        raise ValueError(f"node {old.name!r} belongs to no graph")
    for before, after in zip(old.outputs, results, strict=True):
        if after is not None:
            after.type = before.type if before.type is not None else after.type
            after.shape = before.shape if before.shape is not None else after.shape
            after.metadata_props.update(before.metadata_props)
            after.name, before.name = before.name, None
    names.give(nodes, old)
    graph.insert_before(old, nodes)
    for before, after in zip(old.outputs, results, strict=True):
        if after is not None:
            before.replace_all_uses_with(after, replace_graph_outputs=True)
    graph.remove(old, safe=True)


_FORMAT_OF_TYPE = {
    onnx_ir.DataType.FLOAT8E4M3FN: 9,
    onnx_ir.DataType.FLOAT8E4M3FNUZ: 9,
    onnx_ir.DataType.FLOAT8E5M2: 9,
    onnx_ir.DataType.FLOAT8E5M2FNUZ: 9,
    onnx_ir.DataType.INT4: 10,
    onnx_ir.DataType.UINT4: 10,
    onnx_ir.DataType.FLOAT4E2M1: 11,
    onnx_ir.DataType.FLOAT8E8M0: 12,
    onnx_ir.DataType.INT2: 13,
    onnx_ir.DataType.UINT2: 13,
}
"""The file format (`ir_version`) that introduced an element type; the others are as old as ONNX."""


def _set_ir_version(model: onnx_ir.Model, version: int, lowered: bool) -> None:
    """Raise the file format to what the operator set needs; lower it with it as far as the content allows.

    Runtimes that know an older operator set refuse newer formats unread.
    """
    import onnx.helper

    needed = onnx.helper.OP_SET_ID_VERSION_MAP.get(("ai.onnx", version), model.ir_version)
    if not lowered:
        model.ir_version = max(model.ir_version or 0, needed)
        return
    content = [needed, 4]  # 4: initializers need not be inputs
    if model.functions:
        content.append(10 if any(key[2] for key in model.functions) else 8)
    for _, graph, _ in scoped_graphs(model):
        for value in (*graph.inputs, *graph.initializers.values(), *(o for n in graph for o in n.outputs)):
            content.append(_FORMAT_OF_TYPE.get(value.dtype, 0) if value.dtype is not None else 0)
        if any(n.device_configurations for n in graph):
            return
    model.ir_version = min(model.ir_version or max(content), max(content))


class _Names:
    """Names that nothing in the model has yet, in any graph: a subgraph must not shadow an outer value."""

    def __init__(self, model: onnx_ir.Model) -> None:
        graphs = [graph for _, graph, _ in scoped_graphs(model)]
        self._values = {name for graph in graphs for name in _value_names(graph)}
        self._nodes = {node.name for graph in graphs for node in graph if node.name}

    def give(self, nodes: list[onnx_ir.Node], origin: onnx_ir.Node) -> None:
        """Name the nodes written for `origin`, which goes, their outputs, and those inside their subgraphs."""
        stem = origin.name or next((v.name for v in origin.outputs if v.name), None) or origin.op_type
        self._nodes.discard(origin.name or "")
        for node in nodes:
            for value in _unnamed(node):
                value.name = _fresh(f"{stem}/{node.op_type}", self._values)
            wanted = (node.name or f"{origin.name}/{node.op_type}") if origin.name else ""
            node.name = _fresh(wanted, self._nodes) if wanted else ""


def _fresh(stem: str, taken: set[str]) -> str:
    name, count = stem, 0
    while name in taken:
        count += 1
        name = f"{stem}_{count}"
    taken.add(name)
    return name


def _unnamed(node: onnx_ir.Node) -> Iterator[onnx_ir.Value]:
    for attribute in node.attributes.values():
        if attribute.type == onnx_ir.AttributeType.GRAPH and not attribute.is_ref():
            graph = attribute.as_graph()
            yield from (v for v in graph.inputs if v.name is None)
            for inner in graph:
                yield from (v for v in inner.outputs if v.name is None)
    yield from (v for v in node.outputs if v.name is None)


def _value_names(graph: onnx_ir.Graph) -> Iterator[str]:
    yield from (v.name for v in graph.inputs if v.name)
    yield from (name for name in graph.initializers if name)
    for node in graph:
        yield from (v.name for v in node.outputs if v.name)
