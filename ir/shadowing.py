"""Names in subgraphs made distinct from those of the graphs around them.

`If`, `Loop` and `Scan` bodies may define a name that an outer graph defines too; inside, the inner one is meant. The
IR refers to values by identity, so this does no harm until a rewrite moves a use of the outer value into the body:
written out by name, it would then mean the inner one. Renaming the inner values once, at capture, spares every rewrite
the care.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir


def rename_shadowing_values(model: onnx_ir.Model) -> int:
    """Rename values of subgraphs that bear the name of a value of an enclosing graph; returns how many."""
    roots = [model.graph, *(function.graph for function in model.functions.values())]
    return sum(_rename_in(root) for root in roots)


def _rename_in(root: onnx_ir.Graph) -> int:
    if next(iter(root.subgraphs()), None) is None:
        return 0
    taken = {value.name for graph in (root, *root.subgraphs()) for value in _values(graph) if value.name}
    count = 0
    pending: list[tuple[onnx_ir.Graph, frozenset[str]]] = [(root, frozenset())]
    while pending:
        graph, outer = pending.pop()
        for value in list(_values(graph)):
            if value.name and value.name in outer:
                value.name = _fresh(value.name, taken)
                count += 1
        inner = list(_subgraphs(graph))
        if inner:
            names = outer | {value.name for value in _values(graph) if value.name}
            pending += [(subgraph, names) for subgraph in inner]
    return count


def _fresh(name: str, taken: set[str]) -> str:
    number = 1
    while f"{name}_inner{number}" in taken:
        number += 1
    taken.add(f"{name}_inner{number}")
    return f"{name}_inner{number}"


def _values(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _subgraphs(graph: onnx_ir.Graph) -> Iterable[onnx_ir.Graph]:
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.is_ref():
                continue
            if attribute.type == onnx_ir.AttributeType.GRAPH:
                yield attribute.as_graph()
            elif attribute.type == onnx_ir.AttributeType.GRAPHS:
                yield from attribute.as_graphs()
