"""Structural checks on a captured model: names, scopes, order, imports, sizes. Errors name the place."""

from __future__ import annotations

import math
from collections.abc import Iterable

import onnx
import onnx_ir
from opgraft.ir.errors import InputError
from opgraft.ir.external import all_tensors
from opgraft.ir.program import DEFAULT_DOMAINS, Program

OLDEST_OPSET = 7
_MAX_ELEMENTS = 1 << 48
_MAX_NESTING = 64


def check_proto(proto: onnx.ModelProto, where: str) -> None:
    """What must be checked before the IR sees the model: the IR resolves names silently."""
    if not proto.HasField("graph"):
        raise InputError("the model has no graph", where=where, remedy="is this an ONNX model?")
    if proto.ir_version <= 0:
        raise InputError("the model has no IR version", where=where, remedy="is this an ONNX model?")
    if not proto.opset_import:
        raise InputError("the model imports no operator set", where=where, remedy="set opset_import")
    _check_graph_names(proto.graph, where, 0)
    for tensor in proto.graph.initializer:
        _check_dims(tensor, where)
    functions = set()
    for function in proto.functions:
        key = (function.domain, function.name, function.overload)
        if key in functions:
            raise InputError(f"function {key[0]}::{key[1]} is defined twice", where=where)
        functions.add(key)


def _check_graph_names(graph: onnx.GraphProto, where: str, depth: int) -> None:
    if depth > _MAX_NESTING:
        raise InputError(f"subgraphs are nested deeper than {_MAX_NESTING}", where=where)
    for kind, names in (
        ("input", [i.name for i in graph.input]),
        (
            "initializer",
            [i.name for i in graph.initializer] + [s.values.name for s in graph.sparse_initializer],
        ),
    ):
        duplicate = _first_duplicate(names)
        if duplicate is not None:
            raise InputError(f"{kind} {duplicate!r} is defined twice", where=where)
        if "" in names:
            raise InputError(f"an {kind} has no name", where=where)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _check_graph_names(attribute.g, f"{where}: {node.name or node.op_type}", depth + 1)
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                for sub in attribute.graphs:
                    _check_graph_names(sub, f"{where}: {node.name or node.op_type}", depth + 1)


def _first_duplicate(names: list[str]) -> str | None:
    if len(set(names)) == len(names):
        return None
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _check_dims(tensor: onnx.TensorProto, where: str) -> None:
    if any(d < 0 for d in tensor.dims) or math.prod(tensor.dims) > _MAX_ELEMENTS:
        raise InputError(
            f"initializer {tensor.name!r} has the absurd shape {list(tensor.dims)}",
            where=where,
            remedy="the file is damaged or hostile",
        )


def check_program(program: Program, where: str) -> None:
    """Scopes, order and imports of every graph, and that each tensor's data fits its shape."""
    model = program.model
    if any(domain in DEFAULT_DOMAINS for domain in model.opset_imports) and program.opset < OLDEST_OPSET:
        raise InputError(
            f"operator set {program.opset} is older than {OLDEST_OPSET}",
            where=where,
            remedy="export the model again with a newer opset",
        )
    _check_graph(model.graph, set(), where, model.opset_imports)
    for function in model.functions.values():
        _check_graph(function.graph, set(), f"{where}: function {function.name}", function.opset_imports)
    _check_function_recursion(model, where)
    for name, tensor in all_tensors(model):
        _check_tensor_size(tensor, name, where)


def _check_graph(graph: onnx_ir.Graph, outer: set[onnx_ir.Value], where: str, imports: dict[str, int]) -> None:
    """Every input of a node must be visible where it is used; out-of-order nodes are sorted, cycles refused."""
    if not _is_ordered(graph, outer):
        _check_defined(graph, outer, where)
        try:
            graph.sort()
        except ValueError:
            raise InputError("the graph has a cycle", where=where, remedy="ONNX graphs are acyclic") from None
    visible = outer | set(graph.inputs) | set(graph.initializers.values())
    for node in graph:
        if node.domain not in imports and not (
            node.domain in DEFAULT_DOMAINS and any(d in imports for d in DEFAULT_DOMAINS)
        ):
            raise InputError(
                f"domain {node.domain or 'ai.onnx'!r} of operator {node.op_type} is not imported",
                where=f"{where}: node {node.name or node.op_type!r}",
                remedy="add it to opset_import",
            )
        if node.attributes:
            for sub in _graphs_of(node):
                _check_graph(sub, visible, f"{where}: {node.name or node.op_type}", imports)
        visible.update(node.outputs)
    for output in graph.outputs:
        if output not in visible:
            raise InputError(f"output {output.name!r} is produced by nothing", where=where)


def _graphs_of(node: onnx_ir.Node) -> Iterable[onnx_ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == onnx_ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == onnx_ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _is_ordered(graph: onnx_ir.Graph, outer: set[onnx_ir.Value]) -> bool:
    seen = set(graph.inputs)
    seen.update(graph.initializers.values())
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in seen and value not in outer:
                return False
        seen.update(node.outputs)
    return not any(list(_graphs_of(node)) for node in graph if node.attributes) or _captures_ordered(graph)


def _captures_ordered(graph: onnx_ir.Graph) -> bool:
    """Whether values captured by subgraphs are produced before the node that holds the subgraph."""
    produced: set[onnx_ir.Node] = set()
    for node in graph:
        for sub in _graphs_of(node) if node.attributes else ():
            for inner in sub.all_nodes():
                for value in inner.inputs:
                    producer = value.producer() if value is not None else None
                    if producer is not None and producer.graph is graph and producer not in produced:
                        return False
        produced.add(node)
    return True


def _check_defined(graph: onnx_ir.Graph, outer: set[onnx_ir.Value], where: str) -> None:
    known = outer | set(graph.inputs) | set(graph.initializers.values())
    for node in graph:
        known.update(node.outputs)
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in known:
                raise InputError(
                    f"input {value.name!r} is defined nowhere",
                    where=f"{where}: node {node.name or node.op_type!r}",
                    remedy="the model is invalid; export it again",
                )


def _check_function_recursion(model: onnx_ir.Model, where: str) -> None:
    calls = {
        key: {n.op_identifier() for n in function.all_nodes()} & set(model.functions)
        for key, function in model.functions.items()
    }
    state: dict[tuple[str, str, str], int] = {}
    for root in calls:
        stack = [(root, iter(calls[root]))]
        if state.get(root):
            continue
        state[root] = 1
        while stack:
            key, rest = stack[-1]
            follower = next(rest, None)
            if follower is None:
                state[key] = 2
                stack.pop()
            elif state.get(follower) == 1:
                raise InputError(f"function {follower[0]}::{follower[1]} calls itself", where=where)
            elif not state.get(follower):
                state[follower] = 1
                stack.append((follower, iter(calls[follower])))


def _check_tensor_size(tensor: onnx_ir.TensorProtocol, name: str, where: str) -> None:
    """`raw_data` and the typed fields must hold as many elements as the shape says; nothing is decoded."""
    raw = getattr(tensor, "raw", None)
    if not isinstance(raw, onnx.TensorProto):
        return
    if any(d < 0 for d in raw.dims) or math.prod(raw.dims) > _MAX_ELEMENTS:
        raise InputError(f"tensor {name!r} has the absurd shape {list(raw.dims)}", where=where)
    if raw.HasField("raw_data") and len(raw.raw_data) != tensor.nbytes:
        raise InputError(
            f"tensor {name!r} holds {len(raw.raw_data)} bytes, its type and shape take {tensor.nbytes}",
            where=where,
            remedy="the file is damaged",
        )
