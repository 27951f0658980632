"""Evaluate parts of a program on chosen numbers, in Python: what a mask looks like, whether a map is a rotation.

Parts are run by the reference evaluator of the onnx package, operator by operator in NumPy: no native code of a
runtime sees the model, and no weights are read but those in the part.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir
from opgraft.ir.axes.graph import AxisGraph
from opgraft.ir.dims import evaluate, names_of
from opgraft.ir.program import Program, constant_tensor, direct_subgraphs, is_op

MAX_NODES = 2000
"""A part with more nodes is no mask and no table of positions."""


Bindings: TypeAlias = Mapping[str, int]
"""Sizes of the model's symbolic dims."""


class ProbeError(Exception):
    """The part cannot be evaluated; the message says why."""


def small_bindings(program: Program, axes: AxisGraph) -> dict[str, int]:
    """A small size for every symbolic dim of the inputs, all different."""
    names = sorted({n for v in program.graph.inputs for d in axes.of(v) or () for n in names_of(axes.axes[d].size)})
    return {name: 3 + 2 * index for index, name in enumerate(names)}


def shape_under(axes: AxisGraph, value: onnx_ir.Value | None, bindings: Bindings) -> list[int]:
    """The shape of a value. Raises ProbeError where it depends on more than the bindings."""
    numbers = axes.of(value)
    if numbers is None or value is None:
        raise ProbeError("a shape that it takes is not known")
    sizes = [axes.axes[n].size for n in numbers]
    if any(names_of(size) - set(bindings) for size in sizes):
        raise ProbeError(f"the shape of {value.name!r} depends on more than the inputs")
    return [evaluate(size, bindings) for size in sizes]


def size_under(axes: AxisGraph, number: int, bindings: Bindings) -> int:
    size = axes.axes[number].size
    if names_of(size) - set(bindings):
        raise ProbeError(f"the size of {axes.axes[number]} depends on more than the inputs")
    return evaluate(size, bindings)


def given_for(axes: AxisGraph, value: onnx_ir.Value, bindings: Bindings) -> np.ndarray:
    """What a part that starts at `value` is given: ones for an input of the model, the sizes for a result of Shape."""
    node = value.producer()
    if node is None:
        if value.dtype is None:
            raise ProbeError(f"the type of {value.name!r} is not known")
        return np.ones(shape_under(axes, value, bindings), value.dtype.numpy())
    shape = shape_under(axes, node.inputs[0], bindings)
    if is_op(node, "Size"):
        return np.array(np.prod(shape), np.int64)
    start, end = (node.attributes.get(name) for name in ("start", "end"))
    last = end.as_int() if end is not None else len(shape)
    return np.array(shape[start.as_int() if start is not None else 0 : last], np.int64)


def part_between(
    outputs: Iterable[onnx_ir.Value], boundary: Collection[onnx_ir.Value] = (), *, limit: int = MAX_NODES
) -> tuple[list[onnx_ir.Node], list[onnx_ir.Value]]:
    """The nodes that compute `outputs` from `boundary`, the model's inputs and the shapes of other values, and what
    they start from, in no order: inputs, and the results of Shape and Size.

    Raises ProbeError when there are too many, or control flow among them.
    """
    nodes: dict[onnx_ir.Node, None] = {}
    inputs: dict[onnx_ir.Value, None] = {}
    pending = list(outputs)
    seen = set(pending)
    while pending:
        value = pending.pop()
        node = None if value in boundary else value.producer()
        if node is None or is_op(node, "Shape", "Size"):
            if constant_tensor(value) is None or value in boundary:
                inputs[value] = None
            continue
        if node in nodes:
            continue
        if any(True for _ in direct_subgraphs(node)):
            raise ProbeError(f"{node.op_type} {node.name!r} has a body")
        nodes[node] = None
        if len(nodes) > limit:
            raise ProbeError(f"computed by more than {limit} nodes")
        for operand in node.inputs[:1] if is_op(node, "CastLike") else node.inputs:
            if operand is not None and operand not in seen:
                seen.add(operand)
                pending.append(operand)
    return list(nodes), list(inputs)


def evaluate_part(
    program: Program, axes: AxisGraph, outputs: Sequence[onnx_ir.Value], given: Mapping[onnx_ir.Value, np.ndarray]
) -> list[np.ndarray]:
    """The arrays of `outputs` when the values of `given` hold these arrays.

    Raises ProbeError when something else than constants is needed, or the evaluator cannot.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator

    nodes, inputs = part_between(outputs, set(given))
    constant = [constant_tensor(value) for value in outputs]
    if not nodes and all(tensor is not None for tensor in constant):
        return [tensor.numpy() for tensor in constant if tensor is not None]
    missing = [value.name for value in inputs if value not in given]
    if missing:
        raise ProbeError(f"depends on {missing[0]!r} too")
    order = {node: index for index, node in enumerate(program.graph)}
    if any(node not in order for node in nodes):
        raise ProbeError("lies in a subgraph")
    constants = {
        v.name or "": v.const_value
        for node in nodes
        for v in node.inputs
        if v is not None and v not in given and v.producer() is None and v.const_value is not None
    }
    graph = onnx.GraphProto(name="part")
    graph.node.extend(_message(node, axes) for node in sorted(nodes, key=order.__getitem__))
    for name, tensor in constants.items():
        proto = onnx.numpy_helper.from_array(tensor.numpy(), name)
        graph.initializer.append(proto)
    for value, array in given.items():
        if value in inputs:
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            graph.input.append(onnx.helper.make_tensor_value_info(value.name or "", kind, None))
    for value in outputs:
        graph.output.append(onnx.ValueInfoProto(name=value.name or ""))
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in program.model.opset_imports.items()]
    model = onnx.helper.make_model(graph, opset_imports=opsets)
    feeds = {value.name or "": array for value, array in given.items() if value in inputs}
    return _run(ReferenceEvaluator, model, feeds)


def _message(node: onnx_ir.Node, axes: AxisGraph) -> Any:
    """The node; CastLike as the Cast that it is, so that the value of the wanted type need not be computed."""
    proto = onnx_ir.to_proto(node)
    if is_op(node, "CastLike"):
        dtype = axes.facts.dtype(node.inputs[1])
        if dtype is None:
            raise ProbeError(f"the type of {node.inputs[1]} is not known")
        proto.op_type = "Cast"
        del proto.input[1:]
        proto.attribute.add(name="to", type=2, i=int(dtype))
    return proto


def _run(evaluator: Any, model: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    try:
        with np.errstate(all="ignore"):
            results = evaluator(model).run(None, feeds)
    except Exception as error:  # noqa: BLE001 - the evaluator raises whatever NumPy and its operators raise
        raise ProbeError(f"the reference evaluator failed: {type(error).__name__}: {error}") from None
    return [np.asarray(r) for r in results]
