"""Local evidence: what a rewrite replaced and what it put there, cut out as two small models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir
from opgraft.ir.program import Program, constant_tensor

_MAX_REGION_NODES = 60
_MAX_CONSTANT_BYTES = 32 << 20
# How far a cut is moved up when the replacement reads results that the original computes again.
_MAX_EXPANSIONS = 4
# Regions kept per pass: different ones first.
_MAX_PER_PASS = 6


@dataclass(frozen=True)
class Region:
    """Both sides of one rewrite as models with the same inputs and outputs."""

    number: int
    pass_name: str
    site: str
    contract: str
    before: Program
    after: Program


@dataclass
class _Open:
    before: Program | None
    after: Program | None


class RegionRecorder:
    """Cuts regions out while passes run; the graph is not changed. See `passes._pass.Recorder`."""

    def __init__(self, program: Program, *, max_per_pass: int = _MAX_PER_PASS, only: int | None = None) -> None:
        self.program = program
        self.regions: list[Region] = []
        self._max_per_pass = max_per_pass
        self._only = only
        self._signatures: set[tuple[Any, ...]] = set()
        self._counts: dict[str, int] = {}

    def before(
        self, root: onnx_ir.Node, new_nodes: Sequence[onnx_ir.Node], replacements: Sequence[onnx_ir.Value]
    ) -> _Open | None:
        signature = (root.op_type, tuple(n.op_type for n in new_nodes), _shape_key(root))
        if signature in self._signatures and self._only is None:
            return None
        outputs = [
            (old, new)
            for old, new in zip(root.outputs, replacements, strict=False)
            if old.uses() or old.is_graph_output()
        ]
        cut = _common_cut([o for o, _ in outputs], [n for _, n in outputs], set(new_nodes))
        if cut is None:
            return None
        self._signatures.add(signature)
        before = _extract(self.program, [o for o, _ in outputs], cut, None)
        after = _extract(self.program, [n for _, n in outputs], cut, [o for o, _ in outputs])
        return _Open(before, after)

    def after(self, token: _Open, rewrite: Any) -> None:
        if token.before is None or token.after is None:
            return
        # Not every rewrite passes through `before` (dead code has no region), so numbers are compared here.
        if self._only is not None and rewrite.number != self._only:
            return
        count = self._counts.get(rewrite.pass_name, 0)
        if count >= self._max_per_pass and self._only is None:
            return
        self._counts[rewrite.pass_name] = count + 1
        self.regions.append(
            Region(rewrite.number, rewrite.pass_name, rewrite.site, rewrite.contract.value, token.before, token.after)
        )


def _shape_key(root: onnx_ir.Node) -> tuple[Any, ...]:
    ranks = tuple(None if v is None or v.shape is None else len(v.shape) for v in root.inputs)
    constants = tuple(constant_tensor(v) is not None for v in root.inputs)
    attributes = tuple(
        (k, str(a.value))
        for k, a in root.attributes.items()
        if a.type in (onnx_ir.AttributeType.INT, onnx_ir.AttributeType.INTS)
    )
    return ranks, constants, attributes


def _slice_to(
    outputs: Sequence[onnx_ir.Value], stops: set[onnx_ir.Value]
) -> tuple[dict[onnx_ir.Node, None], dict[onnx_ir.Value, None]] | None:
    """Nodes between `stops` and `outputs`, and the values where the slice ends; None when it grows too large."""
    nodes: dict[onnx_ir.Node, None] = {}
    frontier: dict[onnx_ir.Value, None] = {}
    pending = list(outputs)
    seen: set[onnx_ir.Value] = set()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        producer = value.producer()
        if value in stops or (producer is None and constant_tensor(value) is None):
            frontier[value] = None
            continue
        if producer is None or producer in nodes:
            continue
        if len(nodes) >= _MAX_REGION_NODES or any(
            a.type in (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS) or a.is_ref()
            for a in producer.attributes.values()
        ):
            return None
        nodes[producer] = None
        pending += [v for v in producer.inputs if v is not None]
    return nodes, frontier


def _common_cut(
    old: Sequence[onnx_ir.Value], new: Sequence[onnx_ir.Value], new_nodes: set[onnx_ir.Node]
) -> set[onnx_ir.Value] | None:
    """Values that both sides can be computed from, and that nothing else correlates: the region's inputs."""
    stops: set[onnx_ir.Value] = set()
    pending = list(new)
    while pending:
        value = pending.pop()
        producer = value.producer()
        if producer in new_nodes and producer is not None:
            pending += [v for v in producer.inputs if v is not None]
        elif constant_tensor(value) is None:
            stops.add(value)
    for _ in range(_MAX_EXPANSIONS):
        sliced = _slice_to(old, stops)
        if sliced is None:
            return None
        frontier = set(sliced[1])
        if frontier <= stops:
            return stops
        expanded = set()
        for value in stops:
            producer = value.producer()
            if producer is None:
                expanded.add(value)
            else:
                expanded.update(v for v in producer.inputs if v is not None and constant_tensor(v) is None)
        if expanded == stops:
            return stops | frontier
        stops = expanded
    return None


def _extract(
    program: Program,
    outputs: Sequence[onnx_ir.Value],
    stops: set[onnx_ir.Value],
    names_of: Sequence[onnx_ir.Value] | None,
) -> Program | None:
    """A copy of the slice as a program; `names_of` gives the outputs' names and types when they are others'."""
    sliced = _slice_to(outputs, stops)
    if sliced is None:
        return None
    mapping: dict[onnx_ir.Value, onnx_ir.Value] = {}
    inputs: list[onnx_ir.Value] = []
    for value in sorted(stops, key=lambda v: v.name or ""):
        if value.type is None or value.shape is None:
            return None
        copy = onnx_ir.Value(name=f"in_{len(inputs)}", type=value.type, shape=value.shape.copy())
        mapping[value] = copy
        inputs.append(copy)
    initializers: dict[onnx_ir.Value, None] = {}
    ordered = _topological(sliced[0], stops)
    nodes = [_copy_node(node, mapping, initializers) for node in ordered]
    if any(n is None for n in nodes):
        return None
    made = [n for n in nodes if n is not None]
    results = []
    for index, value in enumerate(outputs):
        like = names_of[index] if names_of is not None else value
        source = _mapped(value, mapping, initializers)
        identity = onnx_ir.node("Identity", [source])
        identity.outputs[0].name = f"out_{index}"
        identity.outputs[0].type = like.type if like.type is not None else value.type
        if identity.outputs[0].type is None:
            return None
        made.append(identity)
        results.append(identity.outputs[0])
    if sum(v.const_value.nbytes for v in initializers if v.const_value is not None) > _MAX_CONSTANT_BYTES:
        return None
    graph = onnx_ir.Graph(
        inputs,
        results,
        nodes=made,
        initializers=list(initializers),
        opset_imports=dict(program.model.opset_imports),
        name="region",
    )
    model = onnx_ir.Model(graph, ir_version=program.model.ir_version, functions=_functions(program, made))
    return Program(model, base_dir=program.base_dir)


def _functions(program: Program, nodes: Sequence[onnx_ir.Node]) -> list[onnx_ir.Function]:
    if not any(n.op_identifier() in program.model.functions for n in nodes):
        return []
    return [function.clone() for function in program.model.functions.values()]


def _topological(nodes: dict[onnx_ir.Node, None], stops: set[onnx_ir.Value]) -> list[onnx_ir.Node]:
    order: list[onnx_ir.Node] = []
    state: dict[onnx_ir.Node, bool] = {}
    for start in nodes:
        stack = [(start, False)]
        while stack:
            node, done = stack.pop()
            if done:
                order.append(node)
                continue
            if node in state:
                continue
            state[node] = True
            stack.append((node, True))
            for value in node.inputs:
                producer = value.producer() if value is not None and value not in stops else None
                if producer is not None and producer in nodes and producer not in state:
                    stack.append((producer, False))
    return order


def _mapped(
    value: onnx_ir.Value, mapping: dict[onnx_ir.Value, onnx_ir.Value], initializers: dict[onnx_ir.Value, None]
) -> onnx_ir.Value:
    if value not in mapping:
        tensor = constant_tensor(value)
        copy = onnx_ir.Value(
            name=f"c_{len(initializers)}",
            type=onnx_ir.TensorType(tensor.dtype) if tensor is not None else value.type,
            shape=tensor.shape if tensor is not None else None,  # type: ignore[arg-type]
            const_value=tensor,
        )
        mapping[value] = copy
        initializers[copy] = None
    return mapping[value]


def _copy_node(
    node: onnx_ir.Node, mapping: dict[onnx_ir.Value, onnx_ir.Value], initializers: dict[onnx_ir.Value, None]
) -> onnx_ir.Node | None:
    inputs = [None if v is None else _mapped(v, mapping, initializers) for v in node.inputs]
    copy = onnx_ir.Node(
        node.domain,
        node.op_type,
        inputs,
        list(node.attributes.values()),
        overload=node.overload,
        num_outputs=len(node.outputs),
    )
    for old, new in zip(node.outputs, copy.outputs, strict=True):
        # An omitted output is named ""; one that a rewrite has just made has no name yet.
        new.name = "" if old.name == "" and not old.uses() else f"v_{id(old)}"
        new.type, new.shape = old.type, old.shape
        mapping[old] = new
    return copy
