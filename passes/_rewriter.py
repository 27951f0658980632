"""Build the right-hand side of a rewrite, and put it into the graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir
from opgraft.ir.program import DEFAULT_DOMAINS, direct_subgraphs, is_op, nested_graphs
from opgraft.passes._pass import NoMatch


class Rewriter:
    """Collects the new nodes of one rewrite; nothing of the graph changes before `apply`.

    `rewriter.MatMul(x, w)` makes a node of that type and returns its output;
    `rewriter.op("Split", [x], n_outputs=2, axis=0)` is the general form.
    """

    def __init__(self, graph: onnx_ir.Graph, root: onnx_ir.Node) -> None:
        self.graph = graph
        self.root = root
        self.nodes: list[onnx_ir.Node] = []
        self.initializers: list[onnx_ir.Value] = []

    def op(
        self,
        op_type: str,
        inputs: Sequence[onnx_ir.Value | None],
        *,
        n_outputs: int = 1,
        domain: str = "",
        like: onnx_ir.Value | None = None,
        shape: onnx_ir.Shape | None = None,
        dtype: onnx_ir.DataType | None = None,
        **attributes: Any,
    ) -> tuple[onnx_ir.Value, ...]:
        node = onnx_ir.node(op_type, inputs, attributes or None, domain=domain, num_outputs=n_outputs)
        node.metadata_props.update(_provenance(self.root))
        first = node.outputs[0]
        if like is not None:
            first.type, first.shape = like.type, like.shape
        if shape is not None:
            first.shape = shape
        if dtype is not None:
            first.type = onnx_ir.TensorType(dtype)
        self.nodes.append(node)
        return tuple(node.outputs)

    def __getattr__(self, op_type: str) -> Any:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)

        def make(*inputs: onnx_ir.Value | None, **attributes: Any) -> onnx_ir.Value:
            return self.op(op_type, inputs, **attributes)[0]

        return make

    def constant(
        self, array: np.ndarray | np.generic | onnx_ir.TensorProtocol, hint: str = "constant"
    ) -> onnx_ir.Value:
        """A new initializer. Never an edit of an old one: exporters share initializers between strangers."""
        tensor = onnx_ir.tensor(np.asarray(array)) if isinstance(array, (np.ndarray, np.generic)) else array
        value = onnx_ir.Value(
            name=hint,
            type=onnx_ir.TensorType(tensor.dtype),
            shape=onnx_ir.Shape(d for d in tensor.shape if isinstance(d, int)),
            const_value=tensor,
        )
        self.initializers.append(value)
        return value

    def discard(self) -> None:
        """Take back nodes that a pass made before it gave up: they count as users of their operands."""
        for node in self.nodes:
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
        self.nodes.clear()
        self.initializers.clear()


def _provenance(node: onnx_ir.Node) -> dict[str, str]:
    return {k: v for k, v in node.metadata_props.items() if k.startswith(("opgraft.", "pkg.torch.onnx.name"))}


class Names:
    """Fresh names for values and nodes of one model, linear over a whole run."""

    def __init__(self, model: onnx_ir.Model) -> None:
        self._model = model
        self.function_graphs = {function.graph for function in model.functions.values()}
        self._next: dict[str, int] = {}

    @cached_property
    def used(self) -> set[str]:
        """Every name there is or was; looked up when the first new one is asked for."""
        used: set[str] = set()
        graphs = list(nested_graphs(self._model.graph))
        for function in self._model.functions.values():
            graphs += nested_graphs(function.graph)
        for graph in graphs:
            used.update(v.name or "" for v in graph.inputs)
            used.update(graph.initializers)
            for node in graph:
                used.update(o.name or "" for o in node.outputs)
                used.add(node.name or "")
        return used

    def fresh(self, hint: str) -> str:
        if hint not in self.used:
            self.used.add(hint)
            return hint
        number = self._next.get(hint, 1)
        while f"{hint}_{number}" in self.used:
            number += 1
        self._next[hint] = number + 1
        name = f"{hint}_{number}"
        self.used.add(name)
        return name


def apply(rewriter: Rewriter, replacements: Sequence[onnx_ir.Value], names: Names) -> list[onnx_ir.Node]:
    """Insert the rewriter's nodes before its root and let `replacements` stand for the root's outputs.

    Returns the nodes whose neighbourhood changed: to be visited again. The root and what only it used are removed.
    """
    root, graph = rewriter.root, rewriter.graph
    nodes = list(rewriter.nodes)
    for value in rewriter.initializers:
        value.name = names.fresh(value.name or "constant")
        if graph in names.function_graphs:
            node = _constant_node(value, rewriter)
            nodes.insert(0, node)
            replacements = [node.outputs[0] if r is value else r for r in replacements]
        else:
            graph.register_initializer(value)
    if nodes:
        _name_nodes(rewriter, names)
        graph.insert_before(root, nodes)
    changed: list[onnx_ir.Node] = nodes
    changed += _replace_outputs(root, replacements, graph, rewriter, names)
    changed += remove_dead([root], graph)
    return changed


def _name_nodes(rewriter: Rewriter, names: Names) -> None:
    root = rewriter.root
    base = next((o.name for o in root.outputs if o.name), root.op_type)
    for node in rewriter.nodes:
        node.name = names.fresh(node.name or root.name or base or node.op_type)
        for output in node.outputs:
            if output.name != "":  # an output that is left out stays so
                output.name = names.fresh(output.name or f"{base}_{node.op_type.lower()}")


def _constant_node(value: onnx_ir.Value, rewriter: Rewriter) -> onnx_ir.Node:
    """Function bodies have no initializers: the constant becomes a node there."""
    node = onnx_ir.node("Constant", [], {"value": value.const_value})
    output = node.outputs[0]
    output.name, output.type, output.shape = value.name, value.type, value.shape
    for user in rewriter.nodes:
        for index, operand in enumerate(user.inputs):
            if operand is value:
                user.replace_input_with(index, output)
    return node


def _replace_outputs(
    root: onnx_ir.Node,
    replacements: Sequence[onnx_ir.Value],
    graph: onnx_ir.Graph,
    rewriter: Rewriter,
    names: Names,
) -> list[onnx_ir.Node]:
    changed: list[onnx_ir.Node] = []
    new = {o for n in rewriter.nodes for o in n.outputs} if rewriter.nodes else ()
    for old, value in zip(root.outputs, replacements, strict=False):
        uses = old.uses()
        changed += [use.node for use in uses]
        if value.shape is None and old.shape is not None:
            value.shape = old.shape
        if value.type is None:
            value.type = old.type
        if old.is_graph_output():
            changed += _replace_graph_output(old, value, graph, value in new, names)
            continue
        if value in new and old.name and not value.is_graph_output():
            value.name, old.name = old.name, None
        for user, index in uses:
            user.replace_input_with(index, value)
    return changed


def _replace_graph_output(
    old: onnx_ir.Value, value: onnx_ir.Value, graph: onnx_ir.Graph, is_new: bool, names: Names
) -> list[onnx_ir.Node]:
    """A graph output keeps its name and its type; the value that stands for it takes them, or an Identity does."""
    name = old.name
    producer = value.producer()
    can_rename = producer is not None and not value.is_graph_output() and (is_new or producer.graph is graph)
    if can_rename:
        old.name = names.fresh(f"{name}_replaced")
        value.name = name
        value.shape = old.shape if old.shape is not None else value.shape
        value.type = old.type if old.type is not None else value.type
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        return [producer] if producer is not None else []
    identity = onnx_ir.node("Identity", [value])
    identity.name = names.fresh(f"{name}_identity")
    output = identity.outputs[0]
    old_node = old.producer()
    if old_node is None:
        raise ValueError("a graph output that is replaced must be produced by a node")
    graph.insert_before(old_node, identity)
    old.name = names.fresh(f"{name}_replaced")
    output.name, output.type, output.shape = name, old.type, old.shape
    old.replace_all_uses_with(output, replace_graph_outputs=True)
    # Inner users read the value itself; only the graph output needs the copy.
    for use in list(output.uses()):
        use.node.replace_input_with(use.idx, value)
    return [identity]


def is_dead(node: onnx_ir.Node) -> bool:
    # A loop of its own: a generator's frame costs as much as the answer.
    for output in node.outputs:  # noqa: SIM110
        if output.is_graph_output() or output.uses():
            return False
    return True


def remove_dead(seeds: Iterable[onnx_ir.Node], graph: onnx_ir.Graph) -> list[onnx_ir.Node]:
    """Remove the seeds that nothing uses, and what only they used. Returns live producers that lost a user."""
    stack = list(seeds)
    touched: list[onnx_ir.Node] = []
    while stack:
        node = stack.pop()
        if node.graph is None or not is_dead(node):
            continue
        owner = node.graph
        inputs = [v for v in node.inputs if v is not None]
        if node.attributes:
            inputs += captured_values(node)
        owner.remove(node, safe=True) if not node.attributes else _remove_with_subgraphs(owner, node)
        for value in inputs:
            producer = value.producer()
            if producer is None:
                if value.is_initializer() and not value.uses() and not value.is_graph_output():
                    _drop_initializer(value)
            elif is_dead(producer):
                stack.append(producer)
            else:
                touched.append(producer)
    return touched


def _remove_with_subgraphs(owner: onnx_ir.Graph, node: onnx_ir.Node) -> None:
    """Uses inside the node's subgraphs must go too, or the values they capture look alive."""
    for sub in direct_subgraphs(node):
        for inner in list(sub.all_nodes()):
            for index in range(len(inner.inputs)):
                inner.replace_input_with(index, None)
    owner.remove(node, safe=True)


def captured_values(node: onnx_ir.Node) -> list[onnx_ir.Value]:
    """Values that the node's subgraphs read from outside."""
    captured: dict[onnx_ir.Value, None] = {}
    for sub in direct_subgraphs(node) if node.attributes else ():
        inner: set[onnx_ir.Value] = set()
        used: list[onnx_ir.Value] = []
        for graph in (sub, *sub.subgraphs()):
            inner.update(graph.inputs)
            inner.update(graph.initializers.values())
            for n in graph:
                inner.update(n.outputs)
                used += [v for v in n.inputs if v is not None]
            used += list(graph.outputs)
        captured.update(dict.fromkeys(v for v in used if v not in inner))
    return list(captured)


def _drop_initializer(value: onnx_ir.Value) -> None:
    if value.is_graph_input() or value.graph is None:
        return
    value.graph.initializers.pop(value.name, None)  # type: ignore[arg-type]


_RANDOM = frozenset(
    ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")
)


def is_random(node: onnx_ir.Node) -> bool:
    """Operators that must never be folded, merged or duplicated: each run, each node draws anew."""
    if node.op_type in _RANDOM and node.domain in DEFAULT_DOMAINS:
        return True
    if is_op(node, "Dropout"):
        return len(node.inputs) > 2 and node.inputs[2] is not None
    return any(is_random(n) for sub in direct_subgraphs(node) for n in sub.all_nodes()) if node.attributes else False


def is_standard(node: onnx_ir.Node) -> bool:
    return node.domain in DEFAULT_DOMAINS


def can_stand_for(value: onnx_ir.Value, output: onnx_ir.Value) -> NoMatch | None:
    """Whether `value` may replace `output` without a copy that would cost as much as what it replaces."""
    if not output.is_graph_output():
        return None
    producer = value.producer()
    if producer is None or producer.graph is not output.graph:
        return NoMatch("the output is also an input or a constant", output)
    if value.is_graph_output():
        return NoMatch("the value is another graph output", output)
    return None
