"""networkx views over a graph, for analysis: dominators, convex regions, cuts, connectivity. Never the store.

The nodes of a view are the graph's own `onnx_ir.Node` objects. What a subgraph captures from outside is an
input of the node that owns the subgraph. A virtual ENTRY stands before every node that reads a graph input
(or nothing at all), a virtual EXIT behind every node that makes a graph output (or whose outputs nobody
reads).

All analyses are linear in nodes and edges, but for dominators, which take one logarithm more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, TypeAlias

import networkx as nx
import onnx_ir as ir
from opgraft.ir.errors import InputError
from opgraft.ir.node_work import is_constant

GraphLike: TypeAlias = "ir.Graph | ir.Function"
View: TypeAlias = Any
"""A `networkx.DiGraph`, whose package ships no types."""

ENTRY = "entry"
EXIT = "exit"


def node_graph(graph: GraphLike, *, skip_constants: bool = True) -> View:
    """The nodes of one graph level and the values between them.

    Node attributes: `index`, the position in a topological order; `entry` and `exit`, whether the node is
    next to ENTRY and EXIT. Edge attribute `values`: the values carried. Constant nodes are stored data like
    initializers, and are left out unless `skip_constants` is off.

    Raises InputError when the nodes form a cycle.
    """
    nodes = [node for node in graph if not (skip_constants and _is_constant_node(node))]
    view = nx.DiGraph()
    view.add_nodes_from(nodes)
    outputs = {value for value in graph.outputs if value is not None}
    for node in nodes:
        reads_outside = False
        fed = False
        for value in values_read(node):
            producer = value.producer()
            if producer is None or producer not in view:
                reads_outside |= not is_constant(value)
                continue
            fed = True
            if view.has_edge(producer, node):
                view.edges[producer, node]["values"] += (value,)
            else:
                view.add_edge(producer, node, values=(value,))
        view.nodes[node]["entry"] = reads_outside or not fed
    for index, node in enumerate(_topological(view)):
        attributes = view.nodes[node]
        attributes["index"] = index
        attributes["exit"] = not view.succ[node] or any(value in outputs for value in node.outputs)
    return view


def values_read(node: ir.Node) -> list[ir.Value]:
    """Distinct inputs of a node, captures of its subgraphs included."""
    values = dict.fromkeys(value for value in node.inputs if value is not None)
    for body in bodies_of(node):
        values.update(dict.fromkeys(_captures(body)))
    return list(values)


def topological_order(view: View) -> list[ir.Node]:
    return sorted(view, key=lambda node: view.nodes[node]["index"])


def immediate_dominators(view: View) -> dict[ir.Node, ir.Node | str]:
    """For each node the last node that every path from ENTRY to it passes; ENTRY where there is none."""
    return _dominators(topological_order(view), view.pred, lambda node: view.nodes[node]["entry"], ENTRY)


def immediate_post_dominators(view: View) -> dict[ir.Node, ir.Node | str]:
    """For each node the first node that every path from it to EXIT passes; EXIT where there is none."""
    order = topological_order(view)[::-1]
    return _dominators(order, view.succ, lambda node: view.nodes[node]["exit"], EXIT)


def find_bypass(view: View, nodes: Collection[ir.Node]) -> list[ir.Node] | None:
    """A path that leaves `nodes` and comes back, both ends included; None when they are convex.

    Only nodes ordered before the last of `nodes` are looked at.
    """
    region = set(nodes)
    if not region:
        return None
    index = view.nodes
    last = max(index[node]["index"] for node in region)
    came_from: dict[ir.Node, ir.Node] = {}
    pending = []
    for node in region:
        for successor in view.succ[node]:
            if successor not in region and successor not in came_from:
                came_from[successor] = node
                pending.append(successor)
    while pending:
        node = pending.pop()
        for successor in view.succ[node]:
            if successor in region:
                path = [successor, node]
                while path[-1] not in region:
                    path.append(came_from[path[-1]])
                return path[::-1]
            if successor not in came_from and index[successor]["index"] < last:
                came_from[successor] = node
                pending.append(successor)
    return None


def is_convex(view: View, nodes: Collection[ir.Node]) -> bool:
    """Whether no path leaves `nodes` and comes back: only such a region can become one kernel."""
    return find_bypass(view, nodes) is None


def convex_closure(view: View, nodes: Collection[ir.Node]) -> set[ir.Node]:
    """The smallest convex region around `nodes`: they and all nodes on paths between them."""
    region = set(nodes)
    if not region:
        return region
    positions = [view.nodes[node]["index"] for node in region]
    below = _reach(view, region, view.succ, min(positions), max(positions))
    above = _reach(view, region, view.pred, min(positions), max(positions))
    return region | (below & above)


def partition_is_acyclic(view: View, regions: Iterable[Collection[ir.Node]]) -> bool:
    """Whether the disjoint `regions` can all become single nodes at once.

    Each being convex is not enough: two convex regions may feed each other through different nodes.
    """
    part: dict[ir.Node, object] = {}
    for number, region in enumerate(regions):
        for node in region:
            if node in part:
                raise ValueError(f"node {node.name!r} is in two regions")
            part[node] = number
    quotient = nx.DiGraph()
    quotient.add_nodes_from(part.get(node, node) for node in view)
    ends = ((part.get(source, source), part.get(sink, sink)) for source, sink in view.edges)
    quotient.add_edges_from((source, sink) for source, sink in ends if source is not sink and source != sink)
    return bool(nx.is_directed_acyclic_graph(quotient))


def components(view: View) -> list[set[ir.Node]]:
    """Parts of the graph that exchange no value, in the order of their first node."""
    parts = [set(part) for part in nx.weakly_connected_components(view)]
    return sorted(parts, key=lambda part: min(view.nodes[node]["index"] for node in part))


def articulation_nodes(view: View) -> list[ir.Node]:
    """Nodes without which their component falls apart, in topological order."""
    found = set(nx.articulation_points(view.to_undirected(as_view=True)))
    return [node for node in topological_order(view) if node in found]


def cut_values(graph: GraphLike) -> list[ir.Value]:
    """Values that every path from the graph's inputs to its outputs passes, in order: places to split it."""
    before: dict[Any, list[Any]] = {value: [] for value in graph.inputs if not is_constant(value)}
    n_inputs = len(before)
    for node in topological_order(node_graph(graph)):
        read = [value for value in values_read(node) if value in before]
        # What depends on no input lies on no path.
        if read:
            before[node] = read
            before.update((value, [node]) for value in node.outputs)
    before[EXIT] = [value for value in dict.fromkeys(graph.outputs) if value in before]
    if not before[EXIT]:
        return []
    inputs = set(list(before)[:n_inputs])
    dominators = _dominators(list(before), before, lambda item: item in inputs, ENTRY)
    cuts = []
    item = dominators[EXIT]
    while item != ENTRY:
        if isinstance(item, ir.Value):
            cuts.append(item)
        item = dominators[item]
    return cuts[::-1]


def _is_constant_node(node: ir.Node) -> bool:
    return node.op_type == "Constant" and not node.domain


def bodies_of(node: ir.Node) -> Iterator[ir.Graph]:
    """The subgraphs that a node owns."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _captures(body: ir.Graph) -> Iterator[ir.Value]:
    """Values that a subgraph, or one nested in it, takes from outside of it."""
    inside = set(body.inputs) | set(body.initializers.values())
    for node in body:
        inside.update(node.outputs)
    for node in body:
        yield from (value for value in values_read(node) if value not in inside)
    # A body may hand a value of the outer scope straight on.
    yield from (value for value in body.outputs if value is not None and value not in inside)


def _topological(view: View) -> Iterator[ir.Node]:
    try:
        yield from nx.topological_sort(view)
    except nx.NetworkXUnfeasible:
        cycle = nx.find_cycle(view)
        names = " -> ".join(repr(source.name) for source, _ in cycle)
        raise InputError("the nodes form a cycle", where=names) from None


def _reach(view: View, region: set[ir.Node], following: View, first: int, last: int) -> set[ir.Node]:
    """What can be reached from `region` along `following`, between two positions of the order."""
    seen: set[ir.Node] = set()
    pending = list(region)
    while pending:
        for node in following[pending.pop()]:
            if node not in seen and first <= view.nodes[node]["index"] <= last:
                seen.add(node)
                pending.append(node)
    return seen


def _dominators(order: list[Any], before: Any, is_first: Any, root: str) -> dict[Any, Any]:
    """Immediate dominators of an acyclic graph in one pass: the nearest common ancestor of the predecessors.

    Ancestors are found with one jump pointer per node, so that the long skip connection of a deep network
    costs a logarithm and not its length.

    Source: Myers, "An applicative random-access stack", Information Processing Letters 17(5), 1983.
    """
    parent: dict[Any, Any] = {root: root}
    jump: dict[Any, Any] = {root: root}
    depth: dict[Any, int] = {root: 0}

    def nearest_common(left: Any, right: Any) -> Any:
        if depth[left] < depth[right]:
            left, right = right, left
        while depth[left] > depth[right]:
            left = jump[left] if depth[jump[left]] >= depth[right] else parent[left]
        while left is not right:
            if jump[left] is not jump[right]:
                left, right = jump[left], jump[right]
            else:
                left, right = parent[left], parent[right]
        return left

    for node in order:
        above: Any = root if is_first(node) else None
        for predecessor in () if above is root else before[node]:
            above = predecessor if above is None else nearest_common(above, predecessor)
        parent[node] = above
        depth[node] = depth[above] + 1
        balanced = depth[above] - depth[jump[above]] == depth[jump[above]] - depth[jump[jump[above]]]
        jump[node] = jump[jump[above]] if balanced else above
    del parent[root]
    return parent
