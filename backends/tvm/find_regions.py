"""Finds regions of elementwise operators that one kernel can compute.

A region must be convex: no path may leave it and come back, or the fused node would be its own ancestor.
That is decided by levels instead of path searches, in time linear in the graph. Call an edge *fusable* when
it joins two eligible nodes of one shape. Levels never fall along an edge, and rise on every edge that leaves
an eligible node and is not fusable. A path out of a set of equal level has therefore a higher level and can
never return, so every set of fusably connected nodes on one level is convex, and all such sets can be
contracted together without making a cycle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir
from opgraft.kernels.elementwise_ops import OPS, POWERS
from opgraft.kernels.fused_elementwise import ElementwiseRegion, Layout, Step, inlinable

MIN_STEPS = 3
# Two operators are often fused by the runtime itself, and a fused node has its own call to pay.
MAX_STEPS = 64
MAX_BUFFERS = 48
# kMaxBuffers of the bridge.
MAX_RANK = 12
# kMaxRank of the bridge.


@dataclass(frozen=True)
class Refusal:
    """Why an elementwise operator, or a group of them, was left as it is."""

    reason: str
    where: str


@dataclass(frozen=True)
class FoundRegion:
    """The nodes of a region in topological order, and how its values map onto the model's."""

    kernel: ElementwiseRegion
    nodes: tuple[onnx_ir.Node, ...]
    inputs: tuple[onnx_ir.Value, ...]
    outputs: tuple[onnx_ir.Value, ...]


Dims = tuple[int | str, ...]


def find_regions(graph: onnx_ir.Graph) -> tuple[list[FoundRegion], list[Refusal]]:
    """The regions of one graph (not of the bodies inside it), whose nodes are in topological order."""
    refused: list[Refusal] = []
    shapes: dict[onnx_ir.Node, Dims] = {}
    for node in graph:
        if node.domain in ("", "ai.onnx") and node.op_type in OPS:
            verdict = _check(node)
            if isinstance(verdict, str):
                refused.append(Refusal(verdict, _name(node)))
            else:
                shapes[node] = verdict
    found: list[FoundRegion] = []
    for group in _groups(graph, shapes):
        for piece in _pieces(group):
            region = _describe(piece, shapes)
            if isinstance(region, str):
                refused.append(Refusal(region, _name(piece[0])))
            else:
                found.append(region)
    return found, refused


def _check(node: onnx_ir.Node) -> Dims | str:
    """The dims of an eligible node's output, or why it is not eligible."""
    op = OPS[node.op_type]
    required = 1 if node.op_type == "Clip" else op.n_inputs[0]
    if not op.n_inputs[0] <= len(node.inputs) <= op.n_inputs[1] or None in node.inputs[:required]:
        return f"{node.op_type} with {len(node.inputs)} inputs"
    unknown = sorted(set(node.attributes) - set(op.defaults))
    if unknown:
        return f"{node.op_type} with attribute {unknown[0]}"
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    if any(value.dtype != onnx_ir.DataType.FLOAT for value in values):
        return f"{node.op_type} on another type than float32"
    dims = _dims(node.outputs[0])
    if dims is None or len(dims) > MAX_RANK:
        return f"shape of {node.outputs[0].name} is not known"
    for value in values:
        if _layout(value, dims) is None:
            return f"{value.name} broadcasts in a way the kernel has no loop for"
    if node.op_type == "Pow" and _literal(node, node.inputs[1]) not in POWERS:
        return f"Pow with an exponent that is not a constant out of {POWERS}"
    return dims


def _dims(value: onnx_ir.Value) -> Dims | None:
    if value.shape is None:
        return None
    dims = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
    return None if None in dims else tuple(dim for dim in dims if dim is not None)


def _layout(value: onnx_ir.Value, full: Dims) -> Layout | None:
    """How `value` spreads over `[rows, columns]` of a value with dims `full`; None if in no such way."""
    dims = _dims(value)
    if dims is None or len(dims) > len(full):
        return None
    stripped = _without_leading_ones(dims)
    if stripped == _without_leading_ones(full):
        return Layout.FULL
    if not stripped:
        return Layout.SCALAR
    return Layout.ROW if stripped == full[-1:] else None


def _without_leading_ones(dims: Dims) -> Dims:
    first = next((index for index, dim in enumerate(dims) if dim != 1), len(dims))
    return dims[first:]


def _literal(node: onnx_ir.Node, value: onnx_ir.Value | None) -> float | None:
    """The value of a constant scalar operand that the kernel may hold as a literal."""
    if value is None or value.is_graph_input():
        return None
    rank = len(value.shape) if value.shape is not None else 0
    others = [len(other.shape or ()) for other in node.inputs if other is not None and other is not value]
    # A literal has no rank: it must not be the operand that gives the result its rank.
    if rank > max(others, default=-1):
        return None
    tensor = onnx_ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size != 1 or tensor.dtype != onnx_ir.DataType.FLOAT:
        return None
    number = float(tensor.numpy().reshape(()))
    return number if inlinable(number) else None


def _groups(graph: onnx_ir.Graph, shapes: Mapping[onnx_ir.Node, Dims]) -> list[list[onnx_ir.Node]]:
    """Fusably connected nodes of equal level, each group in topological order."""
    nodes = list(graph)
    producers = {node: _producers(node, graph) for node in nodes}
    consumers: dict[onnx_ir.Node, list[onnx_ir.Node]] = {node: [] for node in nodes}
    for node in nodes:
        for producer in producers[node]:
            consumers[producer].append(node)

    def fusable(before: onnx_ir.Node, after: onnx_ir.Node) -> bool:
        return before in shapes and after in shapes and shapes[before] == shapes[after]

    def rise(before: onnx_ir.Node, after: onnx_ir.Node) -> int:
        return 1 if before in shapes and not fusable(before, after) else 0

    level: dict[onnx_ir.Node, int] = {}
    for node in nodes:
        level[node] = max((level[before] + rise(before, node) for before in producers[node]), default=0)
    # A node that feeds a fusable one waits for it: silu(g) * u is one region even if u is ready much later.
    for node in reversed(nodes):
        if any(fusable(node, after) for after in consumers[node]):
            level[node] = min(level[after] - rise(node, after) for after in consumers[node])

    root: dict[onnx_ir.Node, onnx_ir.Node] = {node: node for node in shapes}
    for node in shapes:
        for before in producers[node]:
            if fusable(before, node) and level[before] == level[node]:
                root[_find(root, before)] = _find(root, node)
    groups: dict[onnx_ir.Node, list[onnx_ir.Node]] = {}
    for node in shapes:
        groups.setdefault(_find(root, node), []).append(node)
    return list(groups.values())


def _find(root: dict[onnx_ir.Node, onnx_ir.Node], node: onnx_ir.Node) -> onnx_ir.Node:
    while root[node] is not node:
        root[node] = root[root[node]]
        node = root[node]
    return node


def _producers(node: onnx_ir.Node, graph: onnx_ir.Graph) -> list[onnx_ir.Node]:
    """The nodes of `graph` that `node` reads from, also inside the bodies of its attributes."""
    found: dict[onnx_ir.Node, None] = {}
    for value in _values_read(node):
        producer = value.producer()
        if producer is not None and producer.graph is graph:
            found[producer] = None
    return list(found)


def _values_read(node: onnx_ir.Node) -> Iterable[onnx_ir.Value]:
    yield from (value for value in node.inputs if value is not None)
    for body in _bodies(node):
        yield from body.outputs
        for inner in body:
            yield from _values_read(inner)


def _bodies(node: onnx_ir.Node) -> Iterable[onnx_ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == onnx_ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == onnx_ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _pieces(group: Sequence[onnx_ir.Node]) -> list[list[onnx_ir.Node]]:
    """Cuts a group too large for one kernel; contiguous stretches of a topological order stay convex."""
    pieces: list[list[onnx_ir.Node]] = [[]]
    for node in group:
        longer = [*pieces[-1], node]
        if pieces[-1] and (len(longer) > MAX_STEPS or _n_buffers(longer) > MAX_BUFFERS):
            pieces.append([node])
        else:
            pieces[-1] = longer
    return pieces


def _n_buffers(nodes: Sequence[onnx_ir.Node]) -> int:
    inside = {value for node in nodes for value in node.outputs}
    outside = {value for node in nodes for value in node.inputs if value is not None} - inside
    return len(outside) + len(_outputs(nodes))


def _outputs(nodes: Sequence[onnx_ir.Node]) -> list[onnx_ir.Value]:
    """Values that something outside `nodes` reads; a body inside a node counts as outside."""
    members = set(nodes)
    return [
        value
        for node in nodes
        for value in node.outputs
        if value.is_graph_output() or any(use.node not in members for use in value.uses())
    ]


def _describe(nodes: Sequence[onnx_ir.Node], shapes: Mapping[onnx_ir.Node, Dims]) -> FoundRegion | str:
    if len(nodes) < MIN_STEPS:
        return f"{len(nodes)} elementwise operators together, fewer than {MIN_STEPS}"
    full = shapes[nodes[0]]
    inside = {node.outputs[0] for node in nodes}
    literals: dict[tuple[onnx_ir.Node, onnx_ir.Value], float] = {}
    inputs: dict[onnx_ir.Value, Layout] = {}
    for node in nodes:
        for value in node.inputs:
            if value is None or value in inside:
                continue
            literal, layout = _literal(node, value), _layout(value, full)
            if literal is not None:
                literals[node, value] = literal
            elif layout is not None:
                inputs[value] = layout
    ranks = [len(value.shape or ()) for value, layout in inputs.items() if layout is Layout.FULL]
    if len(full) not in ranks:
        return "no operand has the shape of the result"
    outputs = tuple(_outputs(nodes))
    if not outputs:
        return "nothing reads the result"
    constants = tuple(dict.fromkeys(literals.values()))
    index = {value: position for position, value in enumerate(inputs)}
    first_step = len(inputs) + len(constants)
    index |= {node.outputs[0]: first_step + position for position, node in enumerate(nodes)}

    def argument(node: onnx_ir.Node, value: onnx_ir.Value | None) -> int | None:
        if value is None:
            return None
        if (node, value) in literals:
            return len(inputs) + constants.index(literals[node, value])
        return index[value]

    steps = tuple(
        Step(node.op_type, tuple(argument(node, value) for value in node.inputs), _attributes(node)) for node in nodes
    )
    results = tuple(index[value] for value in outputs)
    kernel = ElementwiseRegion(tuple(inputs.values()), constants, steps, results)
    return FoundRegion(kernel, tuple(nodes), tuple(inputs), outputs)


def _attributes(node: onnx_ir.Node) -> tuple[tuple[str, float | str], ...]:
    values: dict[str, float | str] = dict(OPS[node.op_type].defaults)
    for name, default in values.items():
        if name in node.attributes:
            attribute = node.attributes[name]
            values[name] = attribute.as_string() if isinstance(default, str) else attribute.as_float()
    return tuple(sorted(values.items()))


def _name(node: onnx_ir.Node) -> str:
    return node.name or node.outputs[0].name or node.op_type
