"""Convert a model's default operator set to another version, or say which nodes cannot follow.

Every node is taken over every change that its operator saw between the two versions: by an adapter, which
writes equivalent nodes, or freely where the change was reviewed as compatible (`reviewed.py`). All new nodes
are written outside the graph first; only when the whole model is convertible are they put in place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import onnx_ir
from opgraft.ir.errors import UsageError
from opgraft.ir.kernel_table import KernelTable
from opgraft.passes.opset import (
    down_functions,
    down_inputs,
    down_spatial,
    down_windows,
    up_axes,
    up_elementwise,
    up_spatial,
    up_structured,
)
from opgraft.passes.opset.conformity import check_types, fit_older_schema
from opgraft.passes.opset.experimental import EXPERIMENTAL, WRITTEN_AT
from opgraft.passes.opset.facts import Facts
from opgraft.passes.opset.means import keeps_bits
from opgraft.passes.opset.place import Plan, apply, detach, discard, scoped_graphs
from opgraft.passes.opset.reviewed import is_compatible, rounds_otherwise
from opgraft.passes.opset.schemas import (
    NEWEST_OPSET,
    OLDEST_TARGET,
    history,
    newest_known,
    next_change,
    schema_at,
)
from opgraft.passes.opset.site import CannotConvertError, Scope, Site
from opgraft.passes.opset.steps import DOWNGRADES, UPGRADES, Adapter, Results

ADAPTER_MODULES = (
    up_axes,
    up_elementwise,
    up_spatial,
    up_structured,
    down_functions,
    down_inputs,
    down_spatial,
    down_windows,
)
"""Importing them fills the registries of `steps.py`."""


_MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError)
"""What reading a node raises that does not follow its schema: a missing attribute, a value of another type."""


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


@dataclass(frozen=True)
class Conversion:
    """How a conversion went."""

    refusals: tuple[OpsetRefusal, ...] = ()
    """The nodes that cannot be converted; the model is unchanged unless there are none."""
    is_exact: bool = True
    """Whether the runtime comes to the same bits; otherwise to the same numbers with other roundings."""


def convert_opset(model: onnx_ir.Model, version: int, kernels: KernelTable | None = None) -> Conversion:
    """Convert the default domain to `version`, in place: main graph, subgraphs and functions.

    `kernels` are those of the runtime that will run the model: what it can run, it can run afterwards. Weights are
    neither read nor copied.

    Raises:
        UsageError: `version` is not one that conversion targets.
    """
    if not OLDEST_TARGET <= version <= NEWEST_OPSET:
        raise UsageError(f"cannot convert to opset {version}", remedy=f"choose {OLDEST_TARGET} to {NEWEST_OPSET}")
    plan, refusals, facts = Plan(), list[OpsetRefusal](), Facts()
    calls = _parameters_of_calls(model)
    for scope, graph, default in scoped_graphs(model):
        sure = calls.get(scope.identifier(), set()) if isinstance(scope, onnx_ir.Function) else set()
        for node in graph:
            start = default if node.version is None else node.version
            if node.domain == "" and node.op_identifier() not in model.functions:
                refusal = _plan_node(plan, node, start, version, Scope(sure, facts, kernels))
                refusals.extend([refusal] if refusal is not None else [])
    if refusals:
        discard(plan)
        return Conversion(tuple(refusals))
    apply(model, plan, version)
    return Conversion(is_exact=plan.is_exact)


def _parameters_of_calls(model: onnx_ir.Model) -> dict[onnx_ir.OperatorIdentifier, set[str]]:
    """For every function, the parameters that have a default or that every call supplies."""
    known: dict[onnx_ir.OperatorIdentifier, set[str]] = {}
    defaults = {
        key: {name for name, attribute in function.attributes.items() if attribute.value is not None}
        for key, function in model.functions.items()
    }
    if not defaults:
        return {}
    for _, graph, _ in scoped_graphs(model):
        for node in graph:
            key = node.op_identifier()
            if key in model.functions:
                supplied = {n for n, a in node.attributes.items() if not a.is_ref()} | defaults[key]
                known[key] = known[key] & supplied if key in known else supplied
    return known


def _plan_node(plan: Plan, node: onnx_ir.Node, start: int | None, version: int, scope: Scope) -> OpsetRefusal | None:
    walk = _Walk(version, scope, plan.created)
    try:
        if start is None:
            raise CannotConvertError("the model imports no version of the default operator set")
        if start > newest_known():
            raise CannotConvertError("that version is newer than the installed standard")
        if schema_at(node.op_type, start) is None and not _is_experimental(node.op_type, start):
            raise CannotConvertError("the operator is not part of that version of the standard")
        nodes = walk.carry(node, start)
        keeps = keeps_bits(node, start, nodes, version, scope)
    except (CannotConvertError, *_MALFORMED) as refusal:
        reason = str(refusal) if isinstance(refusal, CannotConvertError) else f"malformed node: {refusal!r}"
        return OpsetRefusal(reason, node.name or "", node.op_type, start or 0, version)
    plan.is_exact = plan.is_exact and keeps and not walk.rounds
    if nodes != [node]:
        plan.replacements.append((node, nodes, [walk.current(v) for v in walk.results[node]]))
    return None


class _Walk:
    """Takes one node of the model, and the nodes emitted for it, to the target version."""

    def __init__(self, target: int, scope: Scope, created: dict[onnx_ir.Node, None]) -> None:
        self._target = target
        self._scope = scope
        self._created = created
        self._renamed: dict[onnx_ir.Value, onnx_ir.Value] = {}
        self.results: dict[onnx_ir.Node, list[onnx_ir.Value | None]] = {}
        self.rounds = False
        """Whether what was written comes to other roundings."""

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
            self.rounds = self.rounds or rounds_otherwise(node.op_type, change)
            nodes = self._rewrite(node, at, at_next, partial(_adapt, change=change))
            if nodes is not None:
                return nodes
            at = at_next

    def _rewrite(self, node: onnx_ir.Node, at: int, at_next: int, adapter: Adapter) -> list[onnx_ir.Node] | None:
        """What `adapter` makes of the node, carried on to the target; None when it leaves the node alone."""
        site = Site(node, at, at_next, self._target, self._scope)
        try:
            results = adapter(site)
        finally:
            self._created.update((emitted, None) for emitted, _ in site.emitted)
        self.rounds = self.rounds or site.rounds
        if results is None:
            return None
        self._replace(node, results)
        return [n for emitted, written in site.emitted for n in self.carry(emitted, written)]

    def _replace(self, node: onnx_ir.Node, results: Iterable[onnx_ir.Value | None]) -> None:
        values = list(results)
        self.results[node] = values
        for index, (old, new) in enumerate(zip(node.outputs, values, strict=True)):
            if self._scope.reads(old):
                if new is None:
                    raise CannotConvertError(f"output {index} has no equivalent")
                self._scope.wanted.add(new)
        if node not in self._created:
            return  # a node of the model: its readers are rewired when the plan is applied
        for old, new in zip(node.outputs, values, strict=True):
            if new is not None:
                old.replace_all_uses_with(new)
                self._renamed[old] = new
        detach(node)


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
