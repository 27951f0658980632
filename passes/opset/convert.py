"""Convert a model's default operator set to another version, or say which nodes cannot follow.

Every node is taken over every change that its operator saw between the two versions: by an adapter, which
writes equivalent nodes, or freely where the change was reviewed as compatible (`reviewed.py`). All new nodes
are written outside the graph first; only when the whole model is convertible are they put in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import onnx_ir

from opgraft.ir.errors import UsageError
from opgraft.passes.opset import (
    down_functions,
    down_inputs,
    down_spatial,
    up_axes,
    up_elementwise,
    up_spatial,
    up_structured,
)
from opgraft.passes.opset.conformity import check_types, fit_older_schema
from opgraft.passes.opset.experimental import EXPERIMENTAL, WRITTEN_AT
from opgraft.passes.opset.reviewed import is_compatible
from opgraft.passes.opset.schemas import NEWEST_OPSET, OLDEST_TARGET, history, next_change, schema_at
from opgraft.passes.opset.site import CannotConvertError, Site
from opgraft.passes.opset.steps import DOWNGRADES, UPGRADES, Adapter, Results

ADAPTER_MODULES = (up_axes, up_elementwise, up_spatial, up_structured, down_functions, down_inputs, down_spatial)
"""Importing them fills the registries of `steps.py`."""


@dataclass(frozen=True)
class OpsetRefusal:
    """A node that has no equivalent at the version asked for."""

    reason: str
    node_name: str
    op_type: str
    from_version: int
    to_version: int

    def __str__(self) -> str:
        node = f"{self.op_type} {self.node_name!r}" if self.node_name else self.op_type
        return f"{node}: opset {self.from_version} -> {self.to_version}: {self.reason}"


@dataclass
class _Plan:
    """What will replace the model's nodes; nothing of it is visible in the model yet."""

    replacements: list[tuple[onnx_ir.Node, list[onnx_ir.Node], list[onnx_ir.Value | None]]] = field(
        default_factory=list
    )
    created: dict[onnx_ir.Node, None] = field(default_factory=dict)
    refusals: list[OpsetRefusal] = field(default_factory=list)


def convert_opset(model: onnx_ir.Model, version: int) -> list[OpsetRefusal]:
    """Convert the default domain to `version`, in place: main graph, subgraphs and functions.

    Returns:
        The nodes that cannot be converted; the model is unchanged unless the list is empty. Weights are
        neither read nor copied.

    Raises:
        UsageError: `version` is not one that conversion targets.
    """
    if not OLDEST_TARGET <= version <= NEWEST_OPSET:
        raise UsageError(
            f"cannot convert to opset {version}", remedy=f"choose {OLDEST_TARGET} to {NEWEST_OPSET}"
        )
    plan = _Plan()
    calls = _parameters_of_calls(model)
    for scope, graph, default in _graphs(model):
        sure = calls.get(scope.identifier(), set()) if isinstance(scope, onnx_ir.Function) else set()
        for node in graph:
            start = default if node.version is None else node.version
            if node.domain == "" and node.op_identifier() not in model.functions:
                _plan_node(plan, node, start, version, sure)
    if plan.refusals:
        _discard(plan)
        return plan.refusals
    _apply(model, plan, version)
    return []


def _graphs(
    model: onnx_ir.Model,
) -> Iterator[tuple[onnx_ir.Graph | onnx_ir.Function, onnx_ir.Graph, int | None]]:
    """Every graph with the graph or function whose operator set it uses, and that version."""
    for scope in (model.graph, *model.functions.values()):
        top = scope.graph if isinstance(scope, onnx_ir.Function) else scope
        default = _default_version(scope.opset_imports)
        yield scope, top, default
        for graph in top.subgraphs():
            yield scope, graph, default


def _default_version(imports: dict[str, int]) -> int | None:
    return imports.get("", imports.get("ai.onnx"))


def _parameters_of_calls(model: onnx_ir.Model) -> dict[onnx_ir.OperatorIdentifier, set[str]]:
    """For every function, the parameters that have a default or that every call supplies."""
    known: dict[onnx_ir.OperatorIdentifier, set[str]] = {}
    defaults = {
        key: {name for name, attribute in function.attributes.items() if attribute.value is not None}
        for key, function in model.functions.items()
    }
    if not defaults:
        return {}
    for _, graph, _ in _graphs(model):
        for node in graph:
            key = node.op_identifier()
            if key in model.functions:
                supplied = {n for n, a in node.attributes.items() if not a.is_ref()} | defaults[key]
                known[key] = known[key] & supplied if key in known else supplied
    return known


def _plan_node(plan: _Plan, node: onnx_ir.Node, start: int | None, version: int, sure: set[str]) -> None:
    walk = _Walk(version, sure, plan.created)
    try:
        if start is None:
            raise CannotConvertError("the model imports no version of the default operator set")
        if schema_at(node.op_type, start) is None and not _is_experimental(node.op_type, start):
            raise CannotConvertError("the operator is not part of that version of the standard")
        nodes = walk.carry(node, start)
    except CannotConvertError as refusal:
        plan.refusals.append(OpsetRefusal(str(refusal), node.name or "", node.op_type, start or 0, version))
        return
    if nodes != [node]:
        plan.replacements.append((node, nodes, [walk.current(v) for v in walk.results[node]]))


class _Walk:
    """Takes one node of the model, and the nodes emitted for it, to the target version."""

    def __init__(self, target: int, sure: set[str], created: dict[onnx_ir.Node, None]) -> None:
        self._target = target
        self._sure = sure
        self._created = created
        self._renamed: dict[onnx_ir.Value, onnx_ir.Value] = {}
        self.results: dict[onnx_ir.Node, list[onnx_ir.Value | None]] = {}

    def current(self, value: onnx_ir.Value | None) -> onnx_ir.Value | None:
        while value is not None and value in self._renamed:
            value = self._renamed[value]
        return value

    def carry(self, node: onnx_ir.Node, at: int) -> list[onnx_ir.Node]:
        """The nodes that stand for `node` at the target version, in execution order."""
        while True:
            if schema_at(node.op_type, at) is None and _is_experimental(node.op_type, at):
                return self._rewrite(node, at, WRITTEN_AT, EXPERIMENTAL[node.op_type]) or []
            step = _next_step(node.op_type, at, self._target)
            if step is None:
                return [node]
            change, at_next = step
            nodes = self._rewrite(node, at, at_next, partial(_adapt, change=change))
            if nodes is not None:
                return nodes
            at = at_next

    def _rewrite(self, node: onnx_ir.Node, at: int, at_next: int, adapter: Adapter) -> list[onnx_ir.Node] | None:
        """What `adapter` makes of the node, carried on to the target; None when it leaves the node alone."""
        site = Site(node, at, at_next, self._target, self._sure)
        try:
            results = adapter(site)
        finally:
            self._created.update((emitted, None) for emitted, _ in site.emitted)
        if results is None:
            return None
        self._replace(node, results)
        return [n for emitted, written in site.emitted for n in self.carry(emitted, written)]

    def _replace(self, node: onnx_ir.Node, results: Iterable[onnx_ir.Value | None]) -> None:
        values = list(results)
        self.results[node] = values
        if node not in self._created:
            return  # a node of the model: its readers are rewired when the plan is applied
        for old, new in zip(node.outputs, values, strict=True):
            if new is not None:
                old.replace_all_uses_with(new)
                self._renamed[old] = new
        _detach(node)


def _is_experimental(op_type: str, at: int) -> bool:
    return op_type in EXPERIMENTAL and at < WRITTEN_AT


def _next_step(op_type: str, at: int, target: int) -> tuple[int, int] | None:
    """(the version that changed the operator, the version to write at) on the way from `at` to `target`."""
    if target > at:
        change = next_change(op_type, at)
        return (change, change) if change is not None and change <= target else None
    since = [v for v in history(op_type) if v <= at]
    return (since[-1], max(since[-1] - 1, target)) if since and since[-1] > target else None


def _adapt(site: Site, change: int) -> Results:
    op_type = site.node.op_type
    if site.upward:
        adapter = UPGRADES.get((op_type, change))
        if adapter is not None:
            return adapter(site)
        if is_compatible(op_type, change):
            return None
        raise CannotConvertError(f"the change of {op_type} at opset {change} is not supported")
    check_types(site)
    adapter = DOWNGRADES.get((op_type, change))
    results = adapter(site) if adapter is not None else None
    if results is not None:
        return results
    if history(op_type)[0] == change:
        return down_functions.expand(site)
    if adapter is None and not is_compatible(op_type, change):
        raise CannotConvertError(f"the change of {op_type} at opset {change} cannot be undone")
    return fit_older_schema(site)


def _detach(node: onnx_ir.Node) -> None:
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)


def _discard(plan: _Plan) -> None:
    """Take the emitted nodes off the values of the model."""
    for node in plan.created:
        _detach(node)


def _apply(model: onnx_ir.Model, plan: _Plan, version: int) -> None:
    names = _Names(model) if plan.replacements else None
    for old, nodes, results in plan.replacements:
        graph = old.graph
        if graph is None or names is None:
            continue
        for before, after in zip(old.outputs, results, strict=True):
            if after is not None:
                after.type = before.type if before.type is not None else after.type
                after.shape = before.shape if before.shape is not None else after.shape
                after.metadata_props.update(before.metadata_props)
                after.name, before.name = before.name, None
        for node in nodes:
            names.give(node, old)
        graph.insert_before(old, nodes)
        for before, after in zip(old.outputs, results, strict=True):
            if after is not None:
                before.replace_all_uses_with(after, replace_graph_outputs=True)
        graph.remove(old, safe=True)
    for scope, graph, _ in _graphs(model):
        for imports in (scope.opset_imports, graph.opset_imports):
            if _default_version(imports) is not None:
                imports.pop("ai.onnx", None)
                imports[""] = version
        for node in graph:
            if node.domain == "":
                node.version = None
    _raise_ir_version(model, version)


def _raise_ir_version(model: onnx_ir.Model, version: int) -> None:
    """A newer operator set may need types that only a newer file format can express."""
    import onnx.helper

    needed = onnx.helper.OP_SET_ID_VERSION_MAP.get(("ai.onnx", version), model.ir_version)
    model.ir_version = max(model.ir_version or 0, needed)


class _Names:
    """Names that no value of the model has yet, in any graph: a subgraph must not shadow an outer value."""

    def __init__(self, model: onnx_ir.Model) -> None:
        self._taken = {name for _, graph, _ in _graphs(model) for name in _value_names(graph)}

    def give(self, node: onnx_ir.Node, origin: onnx_ir.Node) -> None:
        """Name the outputs of `node`, written for `origin`, and those inside its subgraphs."""
        stem = origin.name or next((v.name for v in origin.outputs if v.name), None) or origin.op_type
        for value in self._unnamed(node):
            value.name = self._fresh(f"{stem}/{node.op_type}")
        if node.name is None:
            node.name = f"{origin.name}/{node.op_type}" if origin.name else ""

    def _unnamed(self, node: onnx_ir.Node) -> Iterator[onnx_ir.Value]:
        for attribute in node.attributes.values():
            if attribute.type == onnx_ir.AttributeType.GRAPH and not attribute.is_ref():
                graph = attribute.as_graph()
                yield from (v for v in graph.inputs if v.name is None)
                for inner in graph:
                    yield from (v for v in inner.outputs if v.name is None)
        yield from (v for v in node.outputs if v.name is None)

    def _fresh(self, stem: str) -> str:
        name, count = stem, 0
        while name in self._taken:
            count += 1
            name = f"{stem}_{count}"
        self._taken.add(name)
        return name


def _value_names(graph: onnx_ir.Graph) -> Iterator[str]:
    yield from (v.name for v in graph.inputs if v.name)
    yield from (name for name in graph.initializers if name)
    for node in graph:
        yield from (v.name for v in node.outputs if v.name)
